"""How much of the codebook is used, over all ranks and many steps; and new places for codes that nothing uses.

The use within one batch misleads: it depends on the batch's size. So per code two things are kept: its age, the steps
since it was last used, which says exactly how many codes were used in any span of steps; and its hits, decaying
exponentially, for the perplexity.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from magvit_scale.config import CodebookUseConfig


class CodebookUse(nn.Module):
    """Hits and age of every code as buffers, so that a checkpoint carries them; the same on every rank.

    The share of used codes over the last `window` steps is exact: they are the codes younger than that. Exact hits of
    a sliding window would need the counts of every step in it, `window` times the memory. So hits are weighted by
    (1 - 2 / (window + 1)) per step: their mean age is that of the sliding window, and no half-window's turn shows as
    a saw-tooth in the perplexity.
    """

    hits: Tensor
    age: Tensor
    steps: Tensor

    def __init__(self, codebook_size: int, config: CodebookUseConfig):
        super().__init__()
        self.config = config
        self.register_buffer("hits", torch.zeros(codebook_size))
        self.register_buffer("age", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Takes one optimiser step's hits.

        Args:
            counts: 'k' int64 or float32, summed over ranks and micro-batches: every rank must give the same.
        """
        self.hits.mul_(1 - 2 / (self.config.window + 1)).add_(counts)
        self.age.add_(1).masked_fill_(counts > 0, 0)
        self.steps.add_(1)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """Scalars by TensorBoard name, the same on every rank.

        Returns:
            codebook/usage_batch: share of the codes that the last step used.
            codebook/usage_window: share of the codes used within the last `window` steps, or since the start.
            codebook/perplexity: exp of the entropy of the decayed hits, 1 to k; 1 before there are any.
            codebook/dead_codes: share of the codes not used for `dead_after` steps.
            codebook/oldest_age: steps for which the code that has waited longest was not used.
        """
        share = self._share()
        return {
            "codebook/usage_batch": self._usage(1),
            "codebook/usage_window": self._usage(self.config.window),
            "codebook/perplexity": torch.special.entr(share).sum().exp(),
            "codebook/dead_codes": (self.age >= self.config.dead_after).float().mean(),
            "codebook/oldest_age": self.age.max().float(),
        }

    def relative_use(self) -> Tensor:
        """'k' float32: each code's decayed hits, as a multiple of what even use would give it; mean 1."""
        return self._share() * len(self.hits)

    def _share(self) -> Tensor:
        return self.hits / self.hits.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def _usage(self, span: int) -> Tensor:
        """Share of the codes used in the last `span` steps. A code never used is as old as the run: no younger."""
        return (self.age < self.steps.clamp_max(span)).float().mean()

    @torch.no_grad()
    def mark_revived(self, code_ids: Tensor) -> None:
        """Makes revived codes ('r' int64) as old as the window: they have `dead_after` - `window` steps to be used,
        and do not count as used before they are.
        """
        self.age[code_ids] = self.config.window


@torch.no_grad()
def choose_revivals(age: Tensor, vectors: Tensor, dead_after: int, key: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Moves dead codes onto vectors of the encoder, drawn without replacement. Changes nothing; no collective.

    Args:
        age: 'k' int64, of CodebookUse.
        vectors: 'n d', what the encoder gave for a batch. Ranks that give the same vectors, in any order, get the same
            answer; equal ones count once, since the second of two equal codes is never the nearest.
        dead_after: steps without use that make a code dead.
        key: what the draw is a function of, such as (seed, step); each at least 0.

    Returns:
        Ids 'r' int64 of the codes, longest dead first, and their new rows 'r d' float32. With fewer vectors than dead
        codes only the longest dead move.
    """
    candidates = torch.unique(vectors.detach().float(), dim=0)
    by_age = torch.argsort(age, descending=True, stable=True)
    code_ids = by_age[: int((age >= dead_after).sum())][: len(candidates)]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    chosen = generator.permutation(len(candidates))[: len(code_ids)]
    return code_ids, candidates[torch.from_numpy(chosen).to(candidates.device)]

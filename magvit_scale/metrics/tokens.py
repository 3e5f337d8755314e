"""Tables of token frequencies, the baselines of the transformer's cross-entropy, and the use of the codebook.

A tokenizer's ids depend on where in the clip they stand, so a table per position already knows most of what a weak
transformer knows. Against one table for all positions every transformer looks good: that baseline misleads.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

SMOOTHING_GRID = tuple(float(2.0**power) for power in range(-2, 13))


@dataclass(frozen=True, kw_only=True)
class CodebookUse:
    """How much of a codebook a set of tokens uses."""

    used: float
    """Share of the codes that occur."""
    perplexity: float
    """exp of the entropy of the frequencies: 1 to codebook size."""
    counts: Tensor
    """`k` int64, occurrences of each code."""


def frequency_table(tokens: Tensor, codebook_size: int, smoothing: float | None = None) -> Tensor:
    """Log-probabilities of the codes at each position: a baseline that knows where, but not what is around.

    Counts are smoothed towards the frequencies over all positions, p = (n + s q) / (N + s), which predicts better than
    smoothing towards the uniform. The strength s is the one under which the training tokens themselves are most likely
    when each is left out of its own count.

    Args:
        tokens: training tokens, `n t h w` integers in [0, codebook_size).
        codebook_size: k.
        smoothing: s in tokens; null chooses it as above.

    Returns:
        `t h w k` float32.
    """
    counts, prior = _position_counts(tokens, codebook_size), unigram_table(tokens, codebook_size).double().exp()
    strength = choose_smoothing(counts, prior) if smoothing is None else smoothing
    probabilities = (counts + strength * prior) / (len(tokens) + strength)
    return probabilities.log().float()


def unigram_table(tokens: Tensor, codebook_size: int) -> Tensor:
    """Log-probabilities of the codes at any position, equal at all of them (one is added to every count).

    Args:
        tokens: as for `frequency_table`.
        codebook_size: k.

    Returns:
        `t h w k` float32.
    """
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double() + 1
    _, t, h, w = tokens.shape
    return repeat((counts / counts.sum()).log().float(), "k -> t h w k", t=t, h=h, w=w)


def choose_smoothing(counts: Tensor, prior: Tensor) -> float:
    """The strength of the prior that gives the highest leave-one-out likelihood.

    Args:
        counts: `t h w k`, occurrences at each position.
        prior: `t h w k`, probabilities above 0.
    """
    rest = (counts - 1).clamp(min=0)
    remaining = counts.sum(dim=-1, keepdim=True) - 1
    likelihoods = [(counts * ((rest + s * prior) / (remaining + s)).log()).sum().item() for s in SMOOTHING_GRID]
    return SMOOTHING_GRID[likelihoods.index(max(likelihoods))]


def table_cross_entropy(table: Tensor, tokens: Tensor, where: Tensor | None = None) -> float:
    """Mean negative log-probability of tokens under a table.

    Args:
        table: `t h w k` log-probabilities.
        tokens: `n t h w` integers.
        where: `n t h w` bool, the tokens that count; null counts all.

    Returns:
        Nats per token; NaN if none counts.
    """
    log_probabilities = repeat(table.double(), "t h w k -> n t h w k", n=len(tokens))
    losses = -log_probabilities.gather(-1, rearrange(tokens.long(), "n t h w -> n t h w 1")).squeeze(-1)
    return (losses if where is None else losses[where]).mean().item()


def codebook_use(token_ids: Tensor, codebook_size: int) -> CodebookUse:
    """Counts the codes among `token_ids`, integers of any shape in [0, codebook_size)."""
    counts = torch.bincount(token_ids.flatten().long(), minlength=codebook_size)
    used, perplexity = used_and_perplexity(counts)
    return CodebookUse(used=used, perplexity=perplexity, counts=counts)


def used_and_perplexity(counts: Tensor) -> tuple[float, float]:
    """Share of the codes that occur, and exp of the entropy of their frequencies, from occurrences 'k'."""
    frequencies = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.xlogy(frequencies, frequencies).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()


def _position_counts(tokens: Tensor, codebook_size: int) -> Tensor:
    _, t, h, w = tokens.shape
    positions = torch.arange(t * h * w, device=tokens.device) * codebook_size
    flat = rearrange(tokens.long(), "n t h w -> n (t h w)") + positions
    counts = torch.bincount(flat.flatten(), minlength=t * h * w * codebook_size).double()
    return rearrange(counts, "(t h w k) -> t h w k", t=t, h=h, w=w)

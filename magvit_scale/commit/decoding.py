"""COMMIT decoding: all tokens in a few parallel steps, conditions refined on the way (MAGVIT algorithm 1; spec
section 9).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magvit_scale.commit.masking import choose_masked, count_masked, mask_ratio
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import DecodingConfig

Logits = Callable[[Tensor, Tensor], Tensor]
"""'b n' latents with MASK_TOKEN, 'b n' bool unknown positions -> 'b n k' logits."""

Gumbel = Callable[[torch.Size], Tensor]
"""A shape -> independent draws of Gumbel(0, 1)."""


@dataclass(frozen=True)
class Decoded:
    """What decoding gives, with its intermediate steps."""

    tokens: Tensor
    """'b n' int64, of the last step."""
    tokens_by_step: Tensor
    """'steps b n' int64: the whole guess after each step."""
    fixed_by_step: Tensor
    """'steps b n' bool: tokens that no later step samples again."""


def draw_gumbel(generators: Sequence[torch.Generator]) -> Gumbel:
    """Noise for `decode`: each clip of the batch draws from a generator of its own, and so draws the same whatever
    clips stand beside it.

    Args:
        generators: b, one per clip, on the tokens' device.
    """

    def draw(shape: torch.Size) -> Tensor:
        if len(generators) != shape[0]:
            raise ValueError(f"{len(generators)} generators for a batch of {shape[0]}, expected one for each clip")
        exponential = torch.empty(shape, device=generators[0].device)
        for row, own in zip(exponential, generators, strict=True):
            row.exponential_(generator=own)
        return -exponential.clamp(min=torch.finfo(exponential.dtype).tiny).log()

    return draw


def guided(given: Logits, free: Logits, condition: Tensor, scale: float) -> Logits:
    """Classifier-free guidance, given + scale * (given - free) (spec section 9).

    Args:
        given: told task and class.
        free: told neither; sees MASK where an unknown position shows a condition token.
        condition: 'b n' bool, positions that show a condition token while they are unknown.
        scale: 0 never calls `free`.
    """

    def logits(latents: Tensor, unknown: Tensor) -> Tensor:
        told = given(latents, unknown)
        return told + scale * (told - free(latents.masked_fill(condition & unknown, MASK_TOKEN), unknown))

    return given if scale == 0 else logits


@torch.no_grad()
def decode(logits: Logits, start: Tensor, unknown: Tensor, config: DecodingConfig, gumbel: Gumbel) -> Decoded:
    """Samples the tokens of a batch. No step waits for the device.

    Args:
        logits: the transformer with task, class and guidance closed over.
        start: 'b n' int64, what a position shows while it is unknown: a condition's token or MASK_TOKEN.
        unknown: 'b n' bool, the positions to decode; the others keep `start` for good.
        config: steps, schedule and temperatures.
        gumbel: called twice a step, for the tokens ('b n k') and then for their confidences ('b n'), on the tokens'
            device.
    """
    current, guesses, fixed = start, [], []
    num_unknown = unknown.sum(1)
    progresses = [(step + 1) / config.num_steps for step in range(config.num_steps)]
    # Computed on the host, so that all devices agree on it, and brought over once.
    ratios = mask_ratio(torch.tensor(progresses), config.schedule, start.shape[1]).to(start.device)
    for progress, ratio in zip(progresses, ratios, strict=True):
        answer = logits(current, unknown)
        sampled = torch.where(unknown, _sample(answer, gumbel(answer.shape), config), current)
        # Step c: temperature, top-k and top-p shape what is sampled, never how sure the model is of it.
        confidence = answer.log_softmax(-1).gather(2, sampled[..., None])[..., 0]
        confidence = confidence + config.choice_temperature * (1 - progress) * gumbel(confidence.shape)
        unknown = _keep_unknown(confidence, unknown, num_unknown, ratio, config)
        current = torch.where(unknown, start, sampled)
        guesses.append(sampled)
        fixed.append(~unknown)
    fixed[-1] = torch.ones_like(unknown)
    return Decoded(guesses[-1], torch.stack(guesses), torch.stack(fixed))


def _sample(logits: Tensor, noise: Tensor, config: DecodingConfig) -> Tensor:
    """'b n': a draw from softmax(logits / temperature) by the Gumbel-max rule, among the likeliest codes if asked
    (spec section 9, step b).
    """
    if config.top_k:
        smallest = logits.topk(min(config.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p:
        logits = logits.masked_fill(logits < smallest_of_top_p(logits, config.top_p), -torch.inf)
    return (logits / config.sampling_temperature + noise).argmax(-1)


def smallest_of_top_p(logits: Tensor, top_p: float) -> Tensor:
    """'... k' -> '... 1': the logit at which the likeliest codes' probabilities first add up to `top_p` (spec
    section 9).
    """
    descending = logits.sort(dim=-1, descending=True).values
    last = (descending.softmax(-1).cumsum(-1) < top_p).sum(-1, keepdim=True)
    return descending.gather(-1, last.clamp(max=logits.shape[-1] - 1))


def _keep_unknown(
    confidence: Tensor, unknown: Tensor, num_unknown: Tensor, ratio: Tensor, config: DecodingConfig
) -> Tensor:
    """The least confident unknown tokens stay unknown, as many as the schedule says; at least one is fixed per step.

    The schedule's share `ratio` is of the `num_unknown` ('b') that were unknown at first (spec section 9, steps d, e).
    """
    most = (unknown.sum(1) - 1).clamp(min=0)
    count = count_masked(ratio, num_unknown, config.mask_count).minimum(most)
    return choose_masked(confidence.masked_fill(~unknown, torch.inf), count)

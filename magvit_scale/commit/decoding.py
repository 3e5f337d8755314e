"""COMMIT decoding: all tokens in a few parallel steps, conditions refined on the way (MAGVIT algorithm 1; spec
section 9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from magvit_scale.commit.masking import mask_ratio
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import DecodingConfig, Refusal

Logits = Callable[[Tensor, Tensor], Tensor]
"""'b n' latents with MASK_TOKEN, 'b n' bool unknown positions -> 'b n k' logits."""


@dataclass(frozen=True)
class Decoded:
    """What decoding gives, with its intermediate steps."""

    tokens: Tensor
    """'b n' int64, of the last step."""
    tokens_by_step: Tensor
    """'steps b n' int64: the whole guess after each step."""
    fixed_by_step: Tensor
    """'steps b n' bool: tokens that no later step samples again."""


@torch.no_grad()
def decode(
    logits: Logits, condition_tokens: Tensor, condition: Tensor, config: DecodingConfig, generator: torch.Generator
) -> Decoded:
    """Samples the tokens of a batch.

    Args:
        logits: the transformer with task, class and guidance closed over.
        condition_tokens: 'b n' int64 tokens of the condition canvas.
        condition: 'b n' bool latent condition mask; its positions are sampled too, from the canvas's tokens.
        config: steps, schedule and temperatures.
        generator: of the sampling and of the confidences' noise, on the tokens' device.

    Raises:
        Refusal: no steps, or a temperature of 0.
    """
    if config.num_steps < 1 or config.sampling_temperature <= 0:
        raise Refusal(
            f"decoding.num_steps={config.num_steps}, decoding.sampling_temperature={config.sampling_temperature}: "
            "expected at least 1 step and a temperature above 0"
        )
    start = torch.where(condition, condition_tokens, MASK_TOKEN)
    unknown = torch.ones_like(condition)
    current, guesses, fixed = start, [], []
    for step in range(config.num_steps):
        progress = (step + 1) / config.num_steps
        log_probabilities = (logits(current, unknown) / config.sampling_temperature).log_softmax(-1)
        sampled = torch.where(unknown, _sample(log_probabilities, generator), current)
        confidence = log_probabilities.gather(2, sampled[..., None])[..., 0]
        noise = -torch.empty_like(confidence).exponential_(generator=generator).log()  # Gumbel(0, 1)
        confidence = confidence + config.choice_temperature * (1 - progress) * noise
        unknown = _keep_unknown(confidence, unknown, progress, config)
        current = torch.where(unknown, start, sampled)
        guesses.append(sampled)
        fixed.append(~unknown)
    fixed[-1] = torch.ones_like(unknown)
    return Decoded(guesses[-1], torch.stack(guesses), torch.stack(fixed))


def _sample(log_probabilities: Tensor, generator: torch.Generator) -> Tensor:
    b, n, k = log_probabilities.shape
    rows = log_probabilities.exp().reshape(b * n, k)
    return torch.multinomial(rows, 1, generator=generator).reshape(b, n)


def _keep_unknown(confidence: Tensor, unknown: Tensor, progress: float, config: DecodingConfig) -> Tensor:
    """The least confident unknown tokens stay unknown, as many as the schedule says; at least one is fixed per step."""
    num_tokens = unknown.shape[1]
    ratio = mask_ratio(torch.tensor(progress), config.schedule, num_tokens).to(unknown.device)
    most = (unknown.sum(1) - 1).clamp(min=0)
    count = (ratio * num_tokens).floor().long().clamp(min=1).minimum(most)
    # By rank and not by a cut-off: sure tokens tie at a log-probability of exactly 0.
    rank = confidence.masked_fill(~unknown, float("inf")).argsort(dim=1, stable=True).argsort(dim=1)
    return rank < count[:, None]

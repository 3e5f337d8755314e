"""Learning rate as a function of the step."""

from math import cos, pi

from magvit_scale.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Linear warm-up from 0, then a cosine to 0; `step` counts from 0, so with warm-up the first update has rate 0
    (spec 4.4).
    """
    warmup = optim.warmup_steps
    rise = min(1.0, step / warmup) if warmup else 1.0
    fall = 0.5 * (1 + cos(pi * max(0, step - warmup) / max(1, total_steps - warmup)))
    return optim.learning_rate * rise * fall

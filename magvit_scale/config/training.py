"""What both training stages share: the optimiser and the run."""

from dataclasses import dataclass
from typing import Literal

from magvit_scale.config.reading import refuse_below_one


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up from 0 and a cosine to 0 (spec: MAGVIT appendix B)."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    """Decoupled; on kernels only."""
    warmup_steps: int = 0
    gradient_clipping: float = 0.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run folder and the one loop that fills it."""

    folder: str
    """Receives config.yaml, log.txt, metrics.jsonl, tensorboard/, samples/, checkpoints/, export/."""
    steps: int
    """Optimiser steps from start to end."""
    global_batch_size: int
    """Samples per optimiser step over all ranks."""
    seed: int = 0
    log_every: int = 20
    """Steps."""
    sample_every: int = 500
    """Steps between pictures in TensorBoard; 0 switches them off."""
    checkpoint_every: int = 500
    """Steps."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed's own file; batch, learning rate, clipping and precision are set from here and must not be in it."""

    def __post_init__(self) -> None:
        """Refuses counts that no run can have."""
        names = ("steps", "global_batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        refuse_below_one("run", {name: getattr(self, name) for name in names})

"""What both training stages share: the optimiser and the run."""

from dataclasses import dataclass
from typing import Literal

from magvit_scale.config.reading import Refusal, refuse_below_one

Granularity = Literal["none", "pointwise", "blocks", "stages"]
Precision = Literal["fp32", "bf16", "fp16"]
MAY_CHANGE = (
    "run.folder", "run.gradient_accumulation", "run.log_every", "run.sample_every", "run.checkpoint_every",
    "run.keep_", "run.best_is", "run.deepspeed", "run.activation_checkpointing", "run.dead_after_s", "run.hang_after_s",
    "run.profile_steps", "discriminator_deepspeed", "health.", "verify_tokens", "clips.num_workers", "clips.cache",
    "model.tokenizer_hash", "model.tasks",
)  # fmt: skip
"""How keys begin that may differ between the starts of one run: they change how it is computed, and not what. (A
run of other tokens has another fingerprint of its data; its tasks are compared where they are drawn from.)"""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How trained networks compute where they are used."""

    precision: Precision = "fp32"
    """Of the tokenizer's activations, by torch.autocast, and of all that the transformer holds and computes; latents,
    distances to codes and logits are float32 always."""
    compile: bool = False
    """Compiles them and decoding's steps with torch.compile, a minute or more at the first batch of each size, for
    speed from then on. On a GPU the transformer's calls become CUDA graphs."""


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
    gradient_accumulation: int = 1
    """Micro-batches per optimiser step: each rank works on its samples in so many parts, one after the other."""
    seed: int = 0
    log_every: int = 20
    """Steps."""
    sample_every: int = 500
    """Steps between pictures and scores of held-out clips in TensorBoard; 0 switches them off."""
    checkpoint_every: int = 500
    """Steps."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept as well; 0: none."""
    keep_best: str | None = None
    """A logged value, as validation/CG: the checkpoint with the best one is kept as well; null: none."""
    best_is: Literal["lowest", "highest"] = "lowest"
    precision: Precision = "fp32"
    """Of activations and their gradients; weights, moments, sums of gradients, losses and averages are float32 always.
    `fp16` scales its losses by itself."""
    activation_checkpointing: Granularity = "none"
    """What is computed again in the backward pass instead of being kept: `pointwise`, norms, swish, GELU and
    padding, but no convolution or product (on a CPU a transformer's products after GELU run again); `blocks`, the
    inside of every block; `stages`, that of every resolution, or of a group of transformer layers."""
    compile: bool = False
    """Compiles generator and perceptual loss, or transformer, with torch.compile, which takes minutes once; not under
    ZeRO stage 3. The discriminator stays as it is: r1 differentiates it twice."""
    dead_after_s: float = 60.0
    """Seconds of silence after which another process counts as dead and ends the run."""
    hang_after_s: float = 1800.0
    """Seconds in which no process moves on, after which the one furthest behind is named and the run ended; longer than
    the longest checkpoint or sample, at most 10,000; 0 switches it off."""
    profile_steps: tuple[int, int] | None = None
    """First and last step, as metrics.jsonl counts them, that torch's profiler traces into run.folder/profile; null:
    none."""
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed's own file; batch, learning rate, clipping and precision are set from here and must not be in it."""

    def __post_init__(self) -> None:
        """Refuses counts that no run can have."""
        names = ("steps", "global_batch_size", "gradient_accumulation", "log_every", "checkpoint_every",
                 "keep_checkpoints")  # fmt: skip
        refuse_below_one("run", {name: getattr(self, name) for name in names})
        first, last = self.profile_steps or (1, 1)
        if not 1 <= first <= last:
            raise Refusal(f"run.profile_steps=[{first},{last}]: expected the first and the last step, from 1 on")
        if not 0 <= self.hang_after_s <= 10_000 or self.dead_after_s <= 0:
            raise Refusal(
                f"run.hang_after_s={self.hang_after_s}, run.dead_after_s={self.dead_after_s}: expected 0 to 10,000 "
                "seconds, and more than 0"
            )

"""The table of partitions: ZeRO stage, processes, micro-batches, offload; and what each of its runs is given."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from magvit_scale.commit.tasks import CLIP, canvases_of
from magvit_scale.config import (
    TASKS,
    ClipsConfig,
    DiscriminatorConfig,
    OptimConfig,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    VQGANConfig,
    VQGANLossConfig,
)

NUM_STEPS = 20
GLOBAL_BATCH_SIZE = 16
WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Partition:
    """How a run is divided."""

    stage: int
    world: int
    accumulation: int = 1
    offload: bool = False
    overlap: bool = False

    def __str__(self) -> str:
        ways = "-offload" * self.offload + "-overlap" * self.overlap
        return f"stage{self.stage}-world{self.world}-accumulation{self.accumulation}{ways}"

    def settings(self, folder: Path, *, discriminator: bool = False) -> str:
        """DeepSpeed's file, written where it is missing; r1 goes through the discriminator twice, which stage 3
        cannot.
        """
        path = folder / f"{self}{'-discriminator' * discriminator}.json"
        if path.exists():
            return str(path)
        zero: dict[str, object] = {"stage": min(self.stage, 2) if discriminator else self.stage}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = 0  # the default leaves networks of this size whole
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        if self.overlap:
            # Buckets so small that several are on their way in one backward pass.
            zero |= {"overlap_comm": True, "reduce_bucket_size": 500}
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({"zero_optimization": zero}))
        aside.replace(path)
        return str(path)


# Stage 3 comes last: what DeepSpeed does for it stays in the process (spec: elastic checkpoints, section 1).
PARTITIONS = [
    *(Partition(stage, world, accumulation) for stage in range(4) for world in WORLDS for accumulation in (1, 4)),
    *(Partition(2, world, accumulation, overlap=True) for world, accumulation in ((2, 1), (4, 4))),
    *(Partition(stage, world, 1, offload=True) for stage in (1, 2, 3) for world in (1, 2)),
]

VQGAN = TrainVQGANConfig(
    run=RunConfig(folder="", steps=NUM_STEPS, global_batch_size=GLOBAL_BATCH_SIZE),
    clips=ClipsConfig(shards="", num_frames=4, size_px=8),
    # Few tokens of few codes: where two codes are equally near but for rounding, all that follows is different.
    model=VQGANConfig(base_channels=4, channel_multipliers=(1, 1, 2), num_res_blocks=1,
                      temporal_downsample=(True, False), embedding_dim=5, codebook_size=4, num_groups=1),
    discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2)),
    # The entropy loss is of a micro-batch's own vectors, by design; everything else is of the whole batch.
    loss=VQGANLossConfig(perceptual="none", adversarial_weight=0.5, adversarial_start=1, r1_weight=10.0,
                         lecam_weight=0.5, entropy_weight=0.0, ema_decay=0.5),
    optim=OptimConfig(learning_rate=1e-4, betas=(0.5, 0.99), gradient_clipping=0.4),
)  # fmt: skip

ADAPTIVE = replace(VQGAN, loss=replace(VQGAN.loss, adaptive_weight=True))
# Its network looks at 32 pixels and more: so many tokens that after a few steps more one falls between two codes.
PERCEPTUAL = replace(
    VQGAN,
    run=replace(VQGAN.run, steps=4),
    clips=replace(VQGAN.clips, size_px=32),
    model=replace(VQGAN.model, channel_multipliers=(1, 2), temporal_downsample=(True,), num_groups=2),
    loss=replace(VQGAN.loss, perceptual="random"),
)
ENTROPY = replace(VQGAN, loss=replace(VQGAN.loss, entropy_weight=0.1, entropy_temperature=0.1))

COMMIT = TrainCommitConfig(
    run=RunConfig(folder="", steps=NUM_STEPS, global_batch_size=GLOBAL_BATCH_SIZE),
    tokens="",
    tokenizer="",
    model=TransformerConfig(num_layers=2, hidden_size=12, mlp_dim=20, num_heads=3, dropout=0.0, latent_shape=(2, 4, 4),
                            codebook_size=13, num_classes=3),
    optim=OptimConfig(learning_rate=1e-3, betas=(0.9, 0.96), weight_decay=0.045, gradient_clipping=0.1),
    one_task_per_step=False,
)  # fmt: skip
CANVASES = (CLIP, *canvases_of(TASKS))


def clips_of(step: int, size_px: int) -> Tensor:
    """The global batch of a step, 'b 3 t h w' in [0, 1]."""
    shape = (GLOBAL_BATCH_SIZE, 3, 4, size_px, size_px)
    return torch.rand(shape, generator=torch.Generator().manual_seed(step))


def tokens_of(step: int) -> dict[str, Tensor]:
    """The global batch of tokens of a step."""
    generator = torch.Generator().manual_seed(step)
    start = step * GLOBAL_BATCH_SIZE
    return {
        "tokens": torch.randint(13, (GLOBAL_BATCH_SIZE, 9, 2, 4, 4), generator=generator),
        "label": torch.randint(3, (GLOBAL_BATCH_SIZE,), generator=generator),
        "position": torch.arange(start, start + GLOBAL_BATCH_SIZE),
    }

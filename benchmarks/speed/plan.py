"""What is measured at which size: the settings of `python -m benchmarks.speed` and the networks behind its figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from magvit_scale.config import ComputeConfig, DiscriminatorConfig, Precision, TransformerConfig, VQGANConfig

Arithmetic = Literal["fp32", "tf32", "bf16"]
"""fp32: all of it; tf32: products and convolutions of float32 rounded to TF32; bf16: autocast, the rest as tf32, or in
a transformer that is not trained all of it."""
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """python -m benchmarks.speed: figures beside their floors, compared with the stored ones of the same machine."""

    device: Literal["cpu", "cuda"] = "cpu"
    rounds: int = 3
    """Of each figure, its reference kernels in each; after one to warm up."""
    minutes: float = float("inf")
    """After these no further workload is begun; those are left out by name. One may take two minutes to compile."""
    only: str = ""
    """Part of the names of the figures that are measured; empty takes all."""
    store: bool = False
    """Overwrites benchmarks/results/speed_<device>.json, after each workload with all that was found so far: a run that
    is cut off leaves a file of fewer figures."""


@dataclass(frozen=True)
class Plan:
    """Networks and batches, for one device."""

    vqgan: VQGANConfig
    discriminator: DiscriminatorConfig
    transformer: TransformerConfig
    """Without its latents, which follow from the clip."""
    clip: Shape
    """(t, h, w) of what is tokenized, and of the transformer's latents."""
    small_clip: Shape
    """The same of what is sampled, and of the 3D-VQGAN's training step."""
    clips: int
    """Batch of tokenizing and detokenizing."""
    sequences: int
    """Batch of the transformer."""
    samples: int
    """Batch of COMMIT sampling."""
    trained_clips: int
    """Batch of the 3D-VQGAN's training step."""
    ceilings_in: tuple[Arithmetic, ...]
    figures_in: tuple[Arithmetic, ...]
    """Of these, those in which the models run."""
    product_side: int
    """Of the square matrices of the reference kernel."""
    copied_mib: int


@dataclass(frozen=True)
class Setting:
    """How a plan is carried out."""

    plan: Plan
    arithmetic: Arithmetic
    device: torch.device

    @property
    def compute(self) -> ComputeConfig:
        """Of the fast paths. Compiled on a GPU, where minutes of compiling pay, and there in bf16 alone."""
        precision: Precision = "bf16" if self.arithmetic == "bf16" else "fp32"
        return ComputeConfig(precision=precision, compile=self.device.type == "cuda" and precision == "bf16")

    @property
    def has_fast_path(self) -> bool:
        """Whether one is measured besides the plain path: not in a GPU's TF32, where the plain one is asked for."""
        return self.compute.compile or self.device.type == "cpu"


PAPER: Shape = (16, 128, 128)
VQGAN_B, DISCRIMINATOR_B = VQGANConfig(), DiscriminatorConfig(ndim=3)
BERT_B = TransformerConfig(codebook_size=1024, num_classes=101)
PLANS = {
    "cpu": Plan(
        VQGAN_B, DISCRIMINATOR_B, BERT_B, clip=PAPER, small_clip=(16, 32, 32), clips=1, sequences=1, samples=1,
        trained_clips=2, ceilings_in=("fp32",), figures_in=("fp32",), product_side=2048, copied_mib=256,
    ),
    "cuda": Plan(
        VQGAN_B, DISCRIMINATOR_B, BERT_B, clip=PAPER, small_clip=PAPER, clips=16, sequences=32, samples=16,
        trained_clips=8, ceilings_in=("fp32", "tf32", "bf16"), figures_in=("tf32", "bf16"), product_side=8192,
        copied_mib=1024,
    ),
}  # fmt: skip


@contextmanager
def rounding_as(arithmetic: Arithmetic) -> Iterator[None]:
    """A context in which a GPU's products and convolutions of float32 round as named; bf16 leaves few of them."""
    operations = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    former = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee" if arithmetic == "fp32" else "tf32"
        yield
    finally:
        for operation, precision in zip(operations, former, strict=True):
            operation.fp32_precision = precision

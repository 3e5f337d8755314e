"""torch's checkpoint beside DeepSpeed's, on the networks of this project made small enough to be computed."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.meter import MemoryMeter
from magvit_scale.checkpointing import Granularity, checkpoint_activations
from magvit_scale.config import DiscriminatorConfig, VQGANConfig
from magvit_scale.training import distributed, engines
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import compute_r1_penalty

SHAPE = (8, 32, 32)
Checkpoint = Callable[..., Tensor]


def compare_checkpoints() -> dict[str, dict[str, Any]]:
    """KiB at once and gradients that are missing or differ from those without any checkpointing."""
    rows = {}
    for name, (build, loss) in NETWORKS.items():
        expected, _ = differentiate(build, loss, "none", checkpoint)
        for library, function in {"torch": checkpoint, "DeepSpeed": _deepspeed_checkpoint()}.items():
            for granularity in ("blocks", "stages"):
                rows[f"{name}, {granularity}, {library}"] = _row(build, loss, granularity, function, expected)
    return rows


def differentiate(
    build: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], granularity: Granularity, function: Checkpoint
) -> tuple[list[Tensor | None], int]:
    """A network's gradients and the most bytes held beyond its parameters."""
    torch.manual_seed(0)
    model = build()
    checkpoint_activations(model, granularity)
    with patch("magvit_scale.checkpointing.checkpoint", function), MemoryMeter(list(model.parameters())) as meter:
        loss(model).backward()
    return [parameter.grad for parameter in model.parameters()], meter.peak


def _row(build: Any, loss: Any, granularity: Granularity, function: Checkpoint, expected: Any) -> dict[str, Any]:
    try:
        gradients, peak = differentiate(build, loss, granularity, function)
    except RuntimeError as error:
        return {"gradients missing": "all", "gradients that differ": f"refused: {error}", "peak, KiB": "-"}
    pairs = [(own, other) for own, other in zip(expected, gradients, strict=True) if own is not None]
    missing = sum(other is None for _, other in pairs)
    differ = sum(other is not None and not torch.equal(own, other) for own, other in pairs)
    return {"gradients missing": missing, "gradients that differ": differ, "peak, KiB": round(peak / 1024)}


def _deepspeed_checkpoint() -> Checkpoint:
    distributed.start()
    engines.connect()
    from deepspeed import checkpointing

    checkpointing.configure(None, partition_activations=False)
    return lambda function, *inputs, use_reentrant: checkpointing.checkpoint(function, *inputs)


def _clip(seed: int) -> Tensor:
    return torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def _reconstruct(model: nn.Module) -> Tensor:
    reconstruction, quantized = model(_clip(0))
    return (reconstruction - _clip(0)).square().mean() + quantized.commitment_loss + quantized.codebook_loss


def _judge(model: nn.Module) -> Tensor:
    return model(_clip(0)).mean()


def _penalise(model: nn.Module) -> Tensor:
    real = _clip(0).requires_grad_()
    return compute_r1_penalty(model(real), real)


def _build_vqgan() -> nn.Module:
    return VQGAN(
        VQGANConfig(
            base_channels=32, channel_multipliers=(1, 2), temporal_downsample=(True,), embedding_dim=8, codebook_size=16
        )
    )


def _build_discriminator() -> nn.Module:
    return Discriminator(DiscriminatorConfig(ndim=3, base_channels=32, channel_multipliers=(1, 2), clip_shape=SHAPE))


NETWORKS = {
    "VQGAN": (_build_vqgan, _reconstruct),
    "discriminator": (_build_discriminator, _judge),
    "discriminator's r1": (_build_discriminator, _penalise),
}

"""What a training step holds in memory: `python -m benchmarks.memory`, half a minute of one core, no GPU needed.

For activation checkpointing every network of the paper goes forward and backward on fake tensors; then ZeRO by its
formula, and torch's checkpoint beside DeepSpeed's on small networks that are really computed.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.measure import write_results
from benchmarks.meter import MemoryMeter, fake_model
from benchmarks.recomputing import compare_checkpoints
from benchmarks.torchs_own import torchs_own_linear_layers
from magvit_scale.checkpointing import Granularity, checkpoint_activations
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DiscriminatorConfig, TransformerConfig, VQGANConfig
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import compute_r1_penalty

OUTPUT = Path(__file__).parent / "results" / "memory.json"
CLIP, LATENT, NUM_TOKENS = (16, 128, 128), (4, 16, 16), 1026
WIDTHS = {"B": 64, "L": 128}
SIZES = {"B": (12, 768, 3072, 12), "L": (24, 1024, 4096, 16)}
WORLDS = (1, 2, 4, 8, 16, 64)
MIB = 2**20
NOTE = """One clip of 16 x 128 x 128 (the discriminator: two) or one sequence of 1,026 tokens without
dropout. Each storage counts once, as long as it lives; parameters, their gradients, kernels' workspace and what an
allocator wastes do not. FLOPs are those of forward, backward and what is computed again. Autocast is the CPU's, which
pools 3D in float32: on a GPU the discriminator holds less. By ZeRO stage: parameters, gradients and AdamW's moments in
float32, by the formula in benchmarks/memory.py, which benchmarks/partition.py holds against real ranks."""


@dataclass(frozen=True)
class Case:
    """A network and what a step does with it."""

    name: str
    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module], Tensor]
    """Makes its own batch; gives the loss."""


def main() -> None:
    """Writes results/memory.json."""
    groups: dict[str, Any] = {}
    for dtype in (None, torch.bfloat16):
        precision = "float32" if dtype is None else "autocast to bfloat16"
        for case in cases():
            rows = {granularity: hold(case, granularity, dtype) for granularity in get_args(Granularity)}
            groups[f"{case.name}, {precision}"] = rows
    for case in cases():
        if case.forward is not penalise:
            groups[f"{case.name.split(',')[0]}, MiB per rank by ZeRO stage"] = zero_table(case.build)
    groups["torch's checkpoint beside DeepSpeed's, small networks"] = compare_checkpoints()
    write_results(OUTPUT, "Memory of a training step", "python -m benchmarks.memory", groups, NOTE)
    for heading, group in groups.items():
        sys.stdout.write(f"{heading}\n" + "".join(f"  {name}: {row}\n" for name, row in group.items()))


def cases() -> list[Case]:
    """The networks of MAGVIT-B and MAGVIT-L, a batch of one."""
    found = []
    for size, width in WIDTHS.items():
        judge = DiscriminatorConfig(ndim=3, base_channels=width, clip_shape=CLIP)
        layers, hidden, mlp, heads = SIZES[size]
        transformer = TransformerConfig(
            num_layers=layers, hidden_size=hidden, mlp_dim=mlp, num_heads=heads, latent_shape=LATENT,
            codebook_size=1024, num_classes=101, dropout=0.0,
        )  # fmt: skip
        found += [
            Case(f"3D VQGAN-{size}", lambda width=width: VQGAN(VQGANConfig(base_channels=width)), reconstruct),
            Case(f"3D discriminator-{size}, real and fake", lambda judge=judge: Discriminator(judge), judge_both),
            Case(f"3D discriminator-{size}, real and fake and r1", lambda judge=judge: Discriminator(judge), penalise),
            Case(f"transformer-{size}", lambda config=transformer: CommitTransformer(config), predict),
        ]
    return found


def reconstruct(model: nn.Module) -> Tensor:
    """A VQGAN's forward with its own losses, the gradient of all others a product (see vqgan/step.py)."""
    clip = torch.empty(1, 3, *CLIP)
    reconstruction, quantized = model(clip)
    losses = quantized.commitment_loss + quantized.codebook_loss + quantized.entropy_loss
    return (torch.empty_like(reconstruction) * reconstruction).sum() + losses


def judge_both(model: nn.Module) -> Tensor:
    """A discriminator on a real and a fake clip."""
    return model(torch.empty(2, 3, *CLIP)).float().mean()


def penalise(model: nn.Module) -> Tensor:
    """The same with r1, whose gradient runs twice through the forward of the real clip (see vqgan/step.py)."""
    fake, real = torch.empty(1, 3, *CLIP), torch.empty(1, 3, *CLIP, requires_grad=True)
    fake_logits, real_logits = model(fake).float(), model(real).float()
    return fake_logits.mean() + real_logits.mean() + compute_r1_penalty(real_logits, real)


def predict(model: nn.Module) -> Tensor:
    """A transformer's logits and their cross-entropy, without dropout: then attention takes the kernel that keeps no
    matrix of scores, as it does on a GPU with dropout.
    """
    logits = model.at_latents(model(torch.empty(1, NUM_TOKENS, dtype=torch.int64)))
    return logits.logsumexp(-1).mean()


def hold(case: Case, granularity: Granularity, dtype: torch.dtype | None) -> dict[str, float]:
    """Bytes beyond parameters and their gradients: kept for the backward pass, and most at once; FLOPs of both."""
    with fake_model(case.build) as model, torchs_own_linear_layers():
        checkpoint_activations(model, granularity)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        meter = MemoryMeter([tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)])
        with meter:
            with torch.autocast("cpu", dtype, cache_enabled=False) if dtype else nullcontext():
                loss = case.forward(model)
            kept = meter.held
            loss.backward()
    return {
        "kept for backward, MiB": round(kept / MIB),
        "peak, MiB": round(meter.peak / MIB),
        "TFLOP": round(meter.flops / 1e12, 2),
    }


def zero_table(build: Callable[[], nn.Module]) -> dict[str, dict[str, int]]:
    """MiB of parameters, gradients and AdamW's two moments in float32 on each of several ranks."""
    with torch.device("meta"):
        whole = 4 * sum(parameter.numel() for parameter in build().parameters()) / MIB
    return {
        f"ZeRO {stage}": {
            f"{world} rank{'s' if world > 1 else ''}": round(whole * copies(stage, world)) for world in WORLDS
        }
        for stage in range(4)
    }


def copies(stage: int, world: int) -> float:
    """How many times its parameters in float32 a model costs a rank.

    Parameters, gradients and two moments, of which ZeRO shares out the moments from stage 1 on, gradients from 2,
    parameters from 3. From stage 1 on DeepSpeed also copies the rank's share of the parameters and updates that.
    """
    parameters = 1 / world if stage >= 3 else 1
    gradients = 1 / world if stage >= 2 else 1
    moments = 2 / world if stage >= 1 else 2
    return parameters + gradients + moments + (1 / world if stage >= 1 else 0)


if __name__ == "__main__":
    main()

"""Channels first or last in memory: `python -m benchmarks.layout`, a minute of one core.

Blocks of the paper's 3D networks of size B, forward and backward in float32 on the CPU, two clips of their later
resolutions; with one, torch leaves oneDNN and the two differ by five for that reason alone.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import Measured, Work, compare, write_results
from magvit_scale.vqgan.blocks import ResidualBlock
from magvit_scale.vqgan.discriminator import DiscriminatorBlock
from magvit_scale.vqgan.resampling import pool

OUTPUT = Path(__file__).parent / "results" / "layout.json"
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}


def main() -> None:
    """Writes results/layout.json."""
    torch.manual_seed(0)
    groups = {
        "residual block, 64 channels, 8 x 32 x 32, reflect": measure(residual(64, "reflect"), 64, (8, 32, 32)),
        "residual block, 64 channels, 8 x 32 x 32, zeros": measure(residual(64, "zeros"), 64, (8, 32, 32)),
        "residual block, 256 channels, 4 x 16 x 16, reflect": measure(residual(256, "reflect"), 256, (4, 16, 16)),
        "discriminator block, 64 to 128 channels, 8 x 32 x 32": measure(
            DiscriminatorBlock(3, 64, 128, pool), 64, (8, 32, 32)
        ),
    }
    write_results(OUTPUT, "Layout of 3D activations", "python -m benchmarks.layout", groups)
    for heading, group in groups.items():
        ratios = ", ".join(f"{name} {row.ms_per_item:.0f} ms, x {row.ratio:.2f}" for name, row in group.items())
        sys.stdout.write(f"{heading}: {ratios}\n")


def residual(channels: int, padding: str) -> ResidualBlock:
    """A block of the encoder or decoder that keeps its number of channels."""
    return ResidualBlock(3, channels, channels, num_groups=32, padding=padding)


def measure(block: nn.Module, channels: int, shape: tuple[int, int, int]) -> dict[str, Measured]:
    """CPU time of a block per clip in both layouts."""

    def pass_through(memory_format: torch.memory_format) -> Work:
        def work() -> int:
            block.to(memory_format=memory_format)
            x = torch.randn(2, channels, *shape).to(memory_format=memory_format).requires_grad_()
            block(x).sum().backward()
            block.zero_grad()
            return len(x)

        return work

    return compare({name: pass_through(memory_format) for name, memory_format in FORMATS.items()}, rounds=7)


if __name__ == "__main__":
    main()

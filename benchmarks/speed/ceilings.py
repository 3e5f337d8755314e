"""Reference kernels: the fastest that torch's own products, 3D convolutions and copies are on this device, now.

A convolution may be faster than a product: on one AMD processor torch.mm (MKL) gives 103 GFLOP/s a core and oneDNN's
convolutions, which use wider instructions there, 240. So a workload's ceiling is that of its kinds of operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from benchmarks.speed.plan import Arithmetic, Setting, Shape
from benchmarks.speed.timing import Timed, Work, warmed_up

KernelKind = Literal["product", "convolution", "copy"]
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}
DTYPES: dict[Arithmetic, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Kernel:
    """A reference kernel, warmed up."""

    name: str
    kind: KernelKind
    amount: float
    """FLOPs, or bytes read and written."""
    timed: Timed


def build_kernels(setting: Setting) -> list[Kernel]:
    """All of one arithmetic; call and run them inside `rounding_as` it."""
    plan, device, dtype = setting.plan, setting.device, DTYPES[setting.arithmetic]
    channels, clips = plan.vqgan.base_channels * plan.vqgan.channel_multipliers[1], plan.clips
    names = {
        f"3D convolution, {clips} x {channels} x {' x '.join(map(str, plan.clip))}, {name}": memory_format
        for name, memory_format in FORMATS.items()
    }
    return [
        _product(plan.product_side, dtype, device),
        *(_convolution(name, (clips, channels, *plan.clip), layout, dtype, device) for name, layout in names.items()),
        _copy(plan.copied_mib, dtype, device),
    ]


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    name = f"matrix product, {side} x {side}"
    return Kernel(name, "product", 2 * side**3, warmed_up(lambda: torch.mm(matrix, matrix), device))


def _convolution(
    name: str, shape: tuple[int, int, int, int, int], layout: torch.memory_format, dtype: torch.dtype,
    device: torch.device,
) -> Kernel:  # fmt: skip
    """Of the model's shapes the one with the most FLOPs: the decoder's last up-sampler, full resolution on its input's
    width.
    """
    clip = torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout)
    weight = torch.randn(shape[1], shape[1], 3, 3, 3, dtype=dtype, device=device).to(memory_format=layout)
    work: Work = torch.no_grad()(lambda: F.conv3d(clip, weight, padding=1))
    return Kernel(name, "convolution", convolution_flops(shape[0], shape[1], shape[2:]), warmed_up(work, device))


def convolution_flops(clips: int, channels: int, sides: Shape) -> float:
    """Of a 3 x 3 x 3 convolution that keeps width and sides, its border counted in full as torch's formula has it."""
    t, h, w = sides
    return 2.0 * clips * channels**2 * 27 * t * h * w


def _copy(mib: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    source = torch.zeros(mib * 2**20 // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    work = warmed_up(lambda: target.copy_(source), device)
    return Kernel(f"memory copy, {mib} MiB", "copy", 2.0 * source.nbytes, work)


@dataclass(frozen=True)
class Turn:
    """What the kernels gave in one round."""

    kernels: Sequence[Kernel]
    seconds: Sequence[float]

    @property
    def rates(self) -> dict[str, float]:
        """Units per second by kind, of its fastest kernel."""
        found: dict[str, float] = {}
        for kernel, seconds in zip(self.kernels, self.seconds, strict=True):
            found[kernel.kind] = max(found.get(kernel.kind, 0.0), kernel.amount / seconds)
        return found


def take_turn(kernels: Sequence[Kernel]) -> Turn:
    """Runs each once."""
    return Turn(kernels, [kernel.timed.seconds() for kernel in kernels])

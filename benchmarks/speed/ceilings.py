"""Reference kernels: the fastest that torch's own products, 3D convolutions and copies are on this device, now.

On a CPU torch has two libraries for products. On one AMD processor MKL, behind torch.mm and every layer, gives 103
GFLOP/s a core, and oneDNN, behind convolutions, 226 for products and 240 for convolutions, as it uses the wider
instructions there. So a workload's ceiling is that of its kinds of operations, by the faster library.
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
        *_products(plan.product_side, dtype, device),
        *(_convolution(name, (clips, channels, *plan.clip), layout, dtype, device) for name, layout in names.items()),
        _copy(plan.copied_mib, dtype, device),
    ]


def _products(side: int, dtype: torch.dtype, device: torch.device) -> list[Kernel]:
    """torch.mm first."""
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    works: dict[str, Work] = {"torch.mm": lambda: torch.mm(matrix, matrix)}
    if device.type == "cpu":
        given = matrix.to_mkldnn()
        works["oneDNN"] = lambda: torch._C._nn.mkldnn_linear(given, matrix)
    return [
        Kernel(f"matrix product, {side} x {side}, {name}", "product", 2.0 * side**3, warmed_up(work, device))
        for name, work in works.items()
    ]


def _convolution(
    name: str, shape: tuple[int, int, int, int, int], layout: torch.memory_format, dtype: torch.dtype,
    device: torch.device,
) -> Kernel:  # fmt: skip
    """Of the plain path's shapes the one with the most FLOPs: the decoder's last up-sampler, full resolution on its
    input's width.
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

    @property
    def mm_rate(self) -> float:
        """FLOPs per second of torch.mm, the first of the products."""
        return next(
            kernel.amount / seconds
            for kernel, seconds in zip(self.kernels, self.seconds, strict=True)
            if kernel.kind == "product"
        )


def take_turn(kernels: Sequence[Kernel]) -> Turn:
    """Runs each once."""
    return Turn(kernels, [kernel.timed.seconds() for kernel in kernels])

"""How many floating-point operations per second a device could do: from NVIDIA's data sheets, else measured."""

import re
import statistics
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEASURED_S = 0.2
SIDES = {"cpu": 512, "cuda": 4096}
"""Of the square matrices whose product is timed: large enough to be bound by arithmetic."""


class _Sheet(NamedTuple):
    """10^12 operations per second, dense; half precision is summed in float32, as torch does."""

    fp32: float
    tf32: float
    """0 before Ampere, which has no bfloat16 either."""
    half: float


SHEETS = {
    # Data sheets of V100 and T4.
    r"V100-SXM\d-\d+GB": _Sheet(15.7, 0, 125),
    r"V100-PCIE-\d+GB": _Sheet(14, 0, 112),
    r"T4": _Sheet(8.1, 0, 65),
    # Data sheets of A100, A10, L4, L40S, H100, H200 and HGX B200 (an eighth of it); without sparsity, which doubles.
    r"A100-SXM4-\d+GB|A100-PCIE-\d+GB|A100 80GB PCIe": _Sheet(19.5, 156, 312),
    r"A10": _Sheet(31.2, 62.5, 125),
    r"L4": _Sheet(30.3, 60, 121),
    r"L40S": _Sheet(91.6, 183, 362),
    r"H100 80GB HBM3": _Sheet(67, 494.7, 989.4),
    r"H100 PCIe": _Sheet(51, 378, 756),
    r"H100 NVL": _Sheet(60, 417.5, 835.5),
    r"H200": _Sheet(67, 494.7, 989.4),
    r"H200 NVL": _Sheet(60, 417.5, 835.5),
    r"B200": _Sheet(75, 1125, 2250),
    # Whitepapers on GA102, Ada and RTX Blackwell: half of the rate that is advertised, which sums in float16.
    r"RTX 3090": _Sheet(35.6, 35.6, 71),
    r"RTX 4090": _Sheet(82.6, 82.6, 165.2),
    r"RTX 5090": _Sheet(104.8, 104.8, 209.5),
}
"""By the name that the driver gives, without its maker's words; all of the name, since `RTX 4090 D` is another GPU."""


@dataclass(frozen=True)
class Peak:
    """What a device could do."""

    flops_per_s: float
    source: str
    """Where the figure comes from, for log.txt."""


def peak_flops(device: torch.device, precision: Precision) -> Peak:
    """The most operations per second that a device does in a run's precision.

    On GPUs that have TF32, fp32 stands for TF32 where torch may use it for matrix products or convolutions, so that no
    run comes out above its peak. What no data sheet names is measured, in about 0.2 s and 0.1 s of preparation; no
    random number is drawn.
    """
    sheet = find_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    kind = "TF32" if precision == "fp32" and sheet and sheet.tf32 and is_tf32_allowed() else precision
    tera = 0.0 if sheet is None else _of_sheet(sheet, kind)
    if tera:
        return Peak(tera * 1e12, f"{tera:g} TFLOP/s, {kind} of {torch.cuda.get_device_name(device)}, dense, data sheet")
    return measured_peak(device, precision)


def find_sheet(name: str) -> _Sheet | None:
    """The data sheet of a GPU by its name, as in `NVIDIA A100-SXM4-80GB`; None for any that is not in the list."""
    name = re.sub(r"\b(NVIDIA|Tesla|GeForce) ", "", name)
    return next((sheet for pattern, sheet in SHEETS.items() if re.fullmatch(pattern, name)), None)


def is_tf32_allowed() -> bool:
    """Whether torch may compute float32 matrix products or convolutions in TF32 (convolutions: its default)."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set up at import, by torch's own means
    return "tf32" in (torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision)


def _of_sheet(sheet: _Sheet, kind: str) -> float:
    if kind == "bf16" and not sheet.tf32:
        return 0.0
    return {"fp32": sheet.fp32, "TF32": sheet.tf32}.get(kind, sheet.half)


def measured_peak(device: torch.device, precision: Precision) -> Peak:
    """The median rate of products of two square matrices."""
    side = SIDES[device.type]
    # Not random: a run's draws are not disturbed. Not zeros: no processor has an easy time.
    matrix = torch.full((side, side), 0.5, dtype=DTYPES[precision], device=device)
    _seconds_of_product(matrix)
    seconds: list[float] = []
    while sum(seconds) < MEASURED_S:
        seconds.append(_seconds_of_product(matrix))
    rate = 2 * side**3 / statistics.median(seconds)
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    size = f"{side} x {side}"
    return Peak(rate, f"{rate / 1e12:.3g} TFLOP/s, {precision}, measured on products of {size} matrices{threads}")


def _seconds_of_product(matrix: torch.Tensor) -> float:
    if matrix.device.type == "cuda":
        torch.cuda.synchronize(matrix.device)
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    if matrix.device.type == "cuda":
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - start

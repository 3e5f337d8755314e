"""What the project asks of one H200-class GPU in bf16 at paper size, beside what was measured there. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
TIMES_EAGER = 2.0
"""Each figure is also to be so many times as fast as eager PyTorch of the same model in TF32."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One figure's."""

    asked: float
    unit: str
    of: Callable[[Row, float], float]
    """Of a figure's row, and the device's FLOPs per second by its data sheet."""


TARGETS = {
    "transformer training step": Target(0.5, "of the data sheet's FLOPs", lambda row, peak: _flops_rate(row) / peak),
    "3D-VQGAN training step, G + D + r1 + perceptual": Target(0.4, "of the ceiling", lambda row, peak: row["of_floor"]),
    "COMMIT sampling, 12 steps and detokenize": Target(2000, "frames/s", lambda row, peak: row["frames_per_second"]),
    "tokenize": Target(10000, "frames/s", lambda row, peak: row["frames_per_second"]),
}


def targets(figures: Mapping[str, Row], peak: float) -> dict[str, dict[str, str]]:
    """A row for each target: the fastest path in bf16, and that beside eager TF32.

    Args:
        figures: rows by name, of a GPU; empty where none was at hand.
        peak: FLOPs per second of that GPU in bf16, by its data sheet.
    """
    return {name: _row(name, target, figures, peak) for name, target in TARGETS.items()}


def _row(name: str, target: Target, figures: Mapping[str, Row], peak: float) -> dict[str, str]:
    fast = [row for key, row in figures.items() if key.startswith(f"{name}, bf16, ")]
    eager = figures.get(f"{name}, tf32, plain")
    best = min(fast, key=lambda row: row["seconds"], default=None)
    found, times = NOT_MEASURED, NOT_MEASURED
    if best is not None:
        found = f"{target.of(best, peak):,.3g} ({best['path']})"
        times = f"{eager['seconds'] / best['seconds']:.2f}" if eager else NOT_MEASURED
    return {
        "asked": f"{target.asked:,} {target.unit}",
        "measured": found,
        f"times eager TF32, asked {TIMES_EAGER:g}": times,
    }


def _flops_rate(row: Row) -> float:
    return row["tflop"] * 1e12 / row["seconds"]

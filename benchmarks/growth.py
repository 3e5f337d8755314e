"""How a training step's cost grows: `python -m benchmarks.growth`, three minutes of one core.

Toy networks, one thing varied at a time: clip length, resolution, batch, width, depth. Beside what is counted and
measured stands the law: for the transformer the formulas of benchmarks/laws.py, for the VQGAN its base times the power
that a convolution grows with. Then real ranks, and what they send (benchmarks/growth_ranks.py).
"""

import ctypes
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth_ranks import measure_worlds
from benchmarks.growth_steps import Point, transformer_axes, vqgan_axes
from benchmarks.laws import exponent
from benchmarks.measure import cpu_seconds, write_results
from magvit_scale.training import distributed
from magvit_scale.training.flops import count_flops

OUTPUT = Path(__file__).parent / "results" / "growth.json"
ROUNDS = 3
MIB = 2**20
NOTE = """One thing is varied at a time around a toy base, the second row. FLOPs are those of the real step, counted by
training/flops.py. Kept: activations that wait for the backward pass, float32, without dropout, counted on fake tensors
(VQGAN: the generator's). CPU-s: the median of three real steps of one thread, forward to optimiser; over its law, the
base's being 1: above 1 is worse than the law. RSS: what the process grows by in a step. The transformer's laws are the
formulas of benchmarks/laws.py; the VQGAN's are its base times the stated power, without the one window more that a side
takes to be doubled. Powers are those between the last two rows, where what does not grow weighs least. A single clip
breaks the VQGAN's law: on a CPU torch leaves oneDNN for a convolution three to four times slower where the batch is 1
and channels x frames x height at most 20,480.

Ranks: bytes that each rank sends, a ring assumed in every collective; the law is ZeRO's own (section 7 of its paper).
DeepSpeed 0.19 sends half as much again at stages 1 and 2, since it all-reduces gradients where a reduce-scatter would
do, and a third less at stage 3, since it keeps up to 10^9 gathered values from the forward to the backward pass."""


@dataclass(frozen=True)
class Measured:
    """What a step of some size cost."""

    point: Point
    flops: float
    cpu_s: float
    rss: float


def main() -> None:
    """Measures everything and writes results/growth.json."""
    ranks = distributed.start()
    axes = {heading: measure_axis(points) for heading, points in (transformer_axes(ranks) | vqgan_axes(ranks)).items()}
    distributed.stop()
    groups: dict[str, Mapping[str, Any]] = {heading: table(found) for heading, found in axes.items()}
    groups["Powers"] = {heading: powers(*found[-2:]) for heading, found in axes.items()}
    groups |= measure_worlds()
    write_results(OUTPUT, "How cost grows", "python -m benchmarks.growth", groups, NOTE)
    for heading, group in groups.items():
        sys.stdout.write(f"{heading}\n" + "".join(f"  {name}: {row}\n" for name, row in group.items()))


def measure_axis(points: list[Callable[[], Point]]) -> list[Measured]:
    """All points of an axis."""
    return [Measured(point, *measure_step(point.step)) for point in (build() for build in points)]


def measure_step(step: Callable[[], Any]) -> tuple[float, float, float]:
    """FLOPs, CPU-seconds and bytes by which the process grows."""
    _, flops = count_flops(step)
    rss = _growth(step)
    seconds = []
    for _ in range(ROUNDS):
        begun = cpu_seconds()
        step()
        seconds.append(cpu_seconds() - begun)
    return flops, statistics.median(seconds), rss


def table(found: list[Measured]) -> dict[str, dict[str, str]]:
    """A row per point."""
    base = found[1].cpu_s / found[1].point.law_flops
    return {
        f"{own.point.value:g}": {
            "GFLOP, law": f"{own.point.law_flops / 1e9:.3f}",
            "counted / law": f"{own.flops / own.point.law_flops:.2f}",
            "kept MiB, law": f"{own.point.law_kept / MIB:.1f}",
            "kept, counted / law": f"{own.point.kept / own.point.law_kept:.2f}",
            "RSS, MiB": f"{own.rss / MIB:.0f}",
            "CPU-s": f"{own.cpu_s:.3f}",
            "CPU-s / law": f"{own.cpu_s / own.point.law_flops / base:.2f}",
        }
        for own in found
    }


def powers(low: Measured, high: Measured) -> dict[str, str]:
    """How law, counts and time grow between two points."""
    costs = {
        "FLOPs, law": (low.point.law_flops, high.point.law_flops),
        "FLOPs, counted": (low.flops, high.flops),
        "CPU-s": (low.cpu_s, high.cpu_s),
        "kept, law": (low.point.law_kept, high.point.law_kept),
        "kept, counted": (low.point.kept, high.point.kept),
        "RSS": (low.rss, high.rss),
    }
    values = (low.point.value, high.point.value)
    return {name: f"{exponent(values, pair):.2f}" for name, pair in costs.items()}


def _growth(step: Callable[[], Any]) -> float:
    """Bytes between the resident size before and the highest one during a step; Linux and glibc."""
    ctypes.CDLL(None).malloc_trim(0)  # else the step would run in memory that an earlier one has left
    Path("/proc/self/clear_refs").write_text("5")  # the highest size begins anew
    before = _status("VmRSS")
    step()
    return max(1.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

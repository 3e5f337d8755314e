"""Figures as the stored JSON has them, and what moved since it was stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.speed.figures import Round
from benchmarks.speed.plan import Arithmetic

NOTE = """Seconds are of one run: CPU time of one core, children included, or a GPU's time between events; the median of
the rounds and their range. The floor: products and convolutions one after the other at the rate of the fastest
reference kernel of their kind, by any library and in any layout, or the bytes of their operands and results at the rate
of the memory copy, whichever takes longer; the share of the ceiling is floor over seconds. Rates are those of the same
round, so that the share stands on a machine that is now faster and now slower. Beside it all FLOPs at the rate of
torch.mm, which on some CPUs is far from the fastest product. `plain` is eager PyTorch with its own layers, but for the
formula of r1, and its operations are the floor of all paths; `fast` is what the programs do: convolutions that resample
as one, on a CPU linear layers by oneDNN, on a GPU compiled networks with channels last and CUDA graphs
(`compute.compile`, `run.compile`); `official JAX` is the released code's networks with the same weights, compiled by
XLA. Rows of both say how far their first result is from the plain one's: a share of other ids, or of the largest
value."""

SMALLEST_CHANGE = 0.1
"""Two runs of one program have differed by 7 % and more than the three rounds of either, on a machine shared with
others."""


def ceilings(rounds: Mapping[Arithmetic, Sequence[Round]]) -> dict[str, dict[str, str]]:
    """The reference kernels' rates over all rounds of all figures."""
    found: dict[str, list[float]] = {}
    for arithmetic, each in rounds.items():
        for turn in (one.turn for one in each):
            for kernel, seconds in zip(turn.kernels, turn.seconds, strict=True):
                found.setdefault(f"{kernel.name}, {arithmetic}", []).append(kernel.amount / seconds / 1e9)
    return {name: _rates(values, "GB/s" if "copy" in name else "GFLOP/s") for name, values in found.items()}


def _rates(values: list[float], unit: str) -> dict[str, str]:
    numbers = torch.tensor(values)
    words = [f"{float(number):,.4g} {unit}" for number in (numbers.median(), numbers.min(), numbers.max())]
    return dict(zip(("median", "lowest", "highest"), words, strict=True)) | {"measured": f"{len(values)} times"}


def what_moved(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each figure whose time, in times of its reference kernel, moved by more than its spread in either
    run and by more than `SMALLEST_CHANGE`, or that is not in both.
    """
    lines = [f"{name}: not measured now" for name in stored if name not in found]
    for name, own in found.items():
        if name not in stored:
            lines.append(f"{name}: new")
        elif own["reference"] != stored[name]["reference"]:
            lines.append(f"{name}: another reference kernel, {own['reference']}, was {stored[name]['reference']}")
        else:
            lines += _moved(name, stored[name], own)
    return lines


def _moved(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = before["times_reference"], now["times_reference"]
    spread = max(row["times_reference_highest"] - row["times_reference_lowest"] for row in (before, now))
    if abs(new - old) <= spread or max(new, old) / min(new, old) < 1 + SMALLEST_CHANGE:
        return []
    change = "faster" if new < old else "slower"
    return [
        f"{name}: {max(new, old) / min(new, old) - 1:.0%} {change}, {new:.3g} times its reference kernel, was {old:.3g}"
    ]


def device_name(device: torch.device) -> str:
    """For the table."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"

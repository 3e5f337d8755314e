"""A workload becomes a figure: rounds in which it and its reference kernels take turns."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.speed.ceilings import Kernel, Turn, take_turn
from benchmarks.speed.counting import Needs, count_needs
from benchmarks.speed.plan import Arithmetic, Shape, rounding_as
from benchmarks.speed.timing import Timed, Work, warmed_up


@dataclass(frozen=True)
class Built:
    """A workload's networks in memory."""

    paths: Mapping[str, Work]
    """The same result by several ways, `plain` first: eager PyTorch, whose operations are counted for all."""
    parameters: int


@dataclass(frozen=True)
class Workload:
    """Something to measure, not yet built."""

    name: str
    arithmetic: Arithmetic
    batch: int
    shape: str
    build: Callable[[], Built]
    frames: int = 0
    """That one run makes or reads; 0 where frames per second say nothing."""


@dataclass(frozen=True)
class Figure:
    """A row of the table. Seconds are of one run: CPU time of one core, or a GPU's. Shares are of the floor's rates and
    taken within each round; the median of those, and their range.
    """

    path: str
    arithmetic: str
    batch: int
    shape: str
    parameters: int
    rounds: int
    seconds: float
    """Median."""
    lowest: float
    highest: float
    frames_per_second: float
    tflop: float
    floor_s: float
    of_floor: float
    """Floor over seconds: 1 is as fast as the machine allows."""
    of_floor_lowest: float
    of_floor_highest: float
    of_mm: float
    """Operations per second as a share of torch.mm's, whatever kind they are."""
    reference: str
    """Kernel that stands for the machine when two runs are compared."""
    times_reference: float
    times_reference_lowest: float
    times_reference_highest: float


@dataclass(frozen=True)
class Round:
    """Kernels and paths that took turns."""

    turn: Turn
    seconds: Mapping[str, float]
    """By path."""


def measure(
    workload: Workload, kernels: Sequence[Kernel], device: torch.device, num_rounds: int
) -> tuple[dict[str, Figure], list[Round]]:
    """Builds a workload, counts it, and times all its paths in turn; figures by the names of their rows."""
    with rounding_as(workload.arithmetic):
        built = workload.build()
        needs = count_needs(built.paths["plain"])
        used = [kernel for kernel in kernels if kernel.kind != "convolution" or needs.flops["convolution"]]
        paths = {path: warmed_up(work, device) for path, work in built.paths.items()}
        rounds = [take_round(used, paths) for _ in range(num_rounds)]
    name = f"{workload.name}, {workload.arithmetic}"
    figures = {f"{name}, {path}": summarise(workload, path, built.parameters, needs, rounds) for path in paths}
    return figures, rounds


def take_round(kernels: Sequence[Kernel], paths: Mapping[str, Timed]) -> Round:
    """The kernels, then the paths."""
    gc.collect()
    return Round(take_turn(kernels), {path: timed.seconds() for path, timed in paths.items()})


def summarise(workload: Workload, path: str, parameters: int, needs: Needs, rounds: Sequence[Round]) -> Figure:
    """One path's row."""
    seconds = [each.seconds[path] for each in rounds]
    floors = [needs.floor_s(each.turn.rates) for each in rounds]
    shares = [floor / own for floor, own in zip(floors, seconds, strict=True)]
    of_mm = [needs.total_flops / own / each.turn.mm_rate for each, own in zip(rounds, seconds, strict=True)]
    reference = reference_of(needs, rounds[0].turn)
    times = [own / each.turn.seconds[reference] for each, own in zip(rounds, seconds, strict=True)]
    middle = statistics.median(seconds)
    return Figure(
        path=path, arithmetic=workload.arithmetic, batch=workload.batch, shape=workload.shape, parameters=parameters,
        rounds=len(rounds), seconds=middle, lowest=min(seconds), highest=max(seconds),
        frames_per_second=workload.frames / middle, tflop=needs.total_flops / 1e12,
        floor_s=statistics.median(floors), of_floor=statistics.median(shares), of_floor_lowest=min(shares),
        of_floor_highest=max(shares), of_mm=statistics.median(of_mm),
        reference=rounds[0].turn.kernels[reference].name, times_reference=statistics.median(times),
        times_reference_lowest=min(times), times_reference_highest=max(times),
    )  # fmt: skip


def reference_of(needs: Needs, turn: Turn) -> int:
    """Index of the first kernel of the kind of most operations: the same in every run."""
    kind = max(needs.flops, key=lambda each: needs.flops[each])
    return [kernel.kind for kernel in turn.kernels].index(kind)


def words(shape: Shape) -> str:
    """A shape for the table."""
    return " x ".join(map(str, shape))


def count_parameters(networks: Sequence[nn.Module]) -> int:
    """Of all of them."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())

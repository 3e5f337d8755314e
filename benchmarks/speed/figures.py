"""A workload becomes a figure: rounds in which it and its reference kernels take turns."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

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
    compares: bool = True
    """Whether the paths' first results are the same but for rounding."""


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
    differs: float | None
    """From the plain path's first result: the share of other ids, or the largest difference over the largest value.
    None where the results do not compare."""


@dataclass(frozen=True)
class Round:
    """Kernels and paths that took turns."""

    turn: Turn
    seconds: Mapping[str, float]
    """By path."""


@dataclass(frozen=True)
class Measured:
    """A workload's figures by the names of their rows, the rounds behind them, and why a path has none."""

    figures: Mapping[str, Figure]
    rounds: Sequence[Round]
    failures: Mapping[str, str]


def measure(workload: Workload, kernels: Sequence[Kernel], device: torch.device, num_rounds: int) -> Measured:
    """Builds a workload, counts it, and times all its paths in turn. A path that fails has no figure; `plain` must
    not.
    """
    with rounding_as(workload.arithmetic):
        built = workload.build()
        expected, needs = count_needs(built.paths["plain"])
        used = [kernel for kernel in kernels if kernel.kind != "convolution" or needs.flops["convolution"]]
        paths, differences, failures = {}, dict[str, float | None](), dict[str, str]()
        for path, work in built.paths.items():
            try:
                found = expected if path == "plain" else work()
                paths[path] = warmed_up(work, device)
            except RuntimeError as error:  # of compilers too; the other paths' figures are worth having
                failures[f"{workload.name}, {workload.arithmetic}, {path}"] = first_line(error)
                continue
            differences[path] = difference(expected, found) if built.compares else None
        rounds = [take_round(used, paths) for _ in range(num_rounds)]
    figures = {
        f"{workload.name}, {workload.arithmetic}, {path}": replace(
            summarise(workload, path, built.parameters, needs, rounds), differs=differences[path]
        )
        for path in paths
    }
    return Measured(figures, rounds, failures)


def first_line(error: RuntimeError) -> str:
    """Of its message."""
    return str(error).strip().split("\n")[0]


def difference(expected: Any, found: Any) -> float | None:
    """Of two results, tensors or scalars by name, see `Figure.differs`; None of others, as another library's."""
    if isinstance(expected, Mapping):
        return max((difference(expected[name], found[name]) or 0.0 for name in expected), default=None)
    if not isinstance(found, Tensor):
        return None
    if not expected.is_floating_point():
        return float((found != expected).double().mean())
    largest = expected.detach().abs().max().double()
    return float((found.detach().double() - expected.double()).abs().max() / largest) if largest else None


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
        times_reference_lowest=min(times), times_reference_highest=max(times), differs=None,
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

"""Speed beside its ceilings: `python -m benchmarks.speed [device=cuda] [store=true]`; on the CPU about five minutes of
one core.

Prints every figure and what moved since the figures in benchmarks/results/speed_<device>.json, which only store=true
overwrites.
"""

import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_results
from benchmarks.speed.ahead import compile_ahead, ours
from benchmarks.speed.ceilings import Kernel, build_kernels, take_turn
from benchmarks.speed.figures import Figure, Measured, Round, Workload, first_line, measure
from benchmarks.speed.peers import PEERS, not_installed, peers
from benchmarks.speed.plan import PLANS, Arithmetic, Plan, Setting, SpeedConfig, rounding_as
from benchmarks.speed.record import NOTE, ceilings, device_name, what_moved
from benchmarks.speed.targets import targets
from magvit_scale.config import Refusal, parse, refusals_end_the_program
from magvit_scale.freed_memory import keep_freed_memory
from magvit_scale.training.peak import peak_flops

RESULTS = Path(__file__).parents[1] / "results"
TITLES = {"cpu": "Speed on the CPU", "cuda": "Speed on a GPU"}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, and stores where it is asked to: after each workload, as a lent machine may be taken back."""
    with refusals_end_the_program("speed"):
        config = parse(SpeedConfig, argv)
        refuse_impossible(config)
        if config.device == "cpu":
            keep_freed_memory()  # as the programs do, kernels and peers too
        path = RESULTS / f"speed_{config.device}.json"
        stored = json.loads(path.read_text()) if path.exists() else None
        found = Found()
        for _ in run(PLANS[config.device], config, found):
            if config.store:
                store(path, found, config)
        report(stored, group(found, config), config)


def store(path: Path, found: "Found", config: SpeedConfig) -> None:
    """All that was found so far."""
    command = f"python -m benchmarks.speed device={config.device} store=true"
    write_results(path, TITLES[config.device], command, group(found, config), NOTE)


def refuse_impossible(config: SpeedConfig) -> None:
    """Before anything is measured."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("device=cuda: found no GPU that torch can use; take device=cpu")
    if config.store and config.only:
        raise Refusal(f"store=true with only={config.only}: the stored file holds all figures; leave one of them out")
    if config.rounds < 1:
        raise Refusal(f"rounds={config.rounds}: expected at least 1")


@dataclass
class Found:
    """What was measured, of all workloads."""

    figures: dict[str, Figure] = field(default_factory=dict)
    rounds: dict[Arithmetic, list[Round]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """By the name of a row, why it is not there."""


def run(plan: Plan, config: SpeedConfig, found: Found) -> Iterator[None]:
    """Adds all figures, told as they come; yields after each workload."""
    end, device = time.monotonic() + 60 * config.minutes, torch.device(config.device)
    settings = [Setting(plan, arithmetic, device) for arithmetic in plan.ceilings_in]
    if config.device == "cuda":
        compile_ahead([each.name for each in ours(settings[-1]) if config.only in each.name])
    for setting in settings:
        with rounding_as(setting.arithmetic):
            kernels = build_kernels(setting)
            found.rounds[setting.arithmetic] = [Round(take_turn(kernels), {})]
        for workload in (each for each in workloads(setting) if config.only in each.name):
            if time.monotonic() < end:
                add(found, workload, kernels, config)
                yield
            else:
                reason = f"not begun within minutes={config.minutes:g}"
                found.failures[f"{workload.name}, {setting.arithmetic}"] = reason


def add(found: Found, workload: Workload, kernels: Sequence[Kernel], config: SpeedConfig) -> None:
    """Measures one workload; without figures where that fails, as for lack of memory."""
    try:
        measured = measure(workload, kernels, torch.device(config.device), config.rounds)
    except RuntimeError as error:
        measured = Measured({}, [], {f"{workload.name}, {workload.arithmetic}": first_line(error)})
    found.figures |= measured.figures
    found.rounds[workload.arithmetic] += measured.rounds
    found.failures |= measured.failures
    tell(measured)
    gc.collect()
    torch.cuda.empty_cache()


def workloads(setting: Setting) -> list[Workload]:
    """In the order of the table."""
    if setting.arithmetic not in setting.plan.figures_in:
        return []
    return [*ours(setting), *peers(setting)]


def tell(measured: Measured) -> None:
    """A line for each row, and for each that could not be."""
    for name, figure in measured.figures.items():
        sys.stdout.write(
            f"{name}: {figure.seconds:.4g} s ({figure.lowest:.4g} - {figure.highest:.4g}), "
            f"{figure.of_floor:.1%} of its ceiling\n"
        )
    sys.stdout.writelines(f"{name}: left out, {reason}\n" for name, reason in measured.failures.items())
    sys.stdout.flush()


def group(found: Found, config: SpeedConfig) -> dict[str, dict[str, Any]]:
    """The tables of the stored file."""
    device, own = torch.device(config.device), _rows(found.figures, of_peers=False)
    groups = {
        "Set-up": {"device": device_name(device), "torch": torch.__version__},
        "Ceilings": ceilings(found.rounds),
        "Figures": own,
        "Left out": found.failures,
        "Peers, networks of other designs": _rows(found.figures, of_peers=True),
        "Peers that were not there": not_installed(),
    }
    if config.device == "cuda":
        groups["Targets"] = targets(own, peak_flops(device, "bf16").flops_per_s)
    return {heading: rows for heading, rows in groups.items() if rows}


def _rows(figures: dict[str, Figure], *, of_peers: bool) -> dict[str, dict[str, Any]]:
    return {name: _rounded(asdict(row)) for name, row in figures.items() if name.startswith(tuple(PEERS)) == of_peers}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Four significant digits: more would be of one machine's noise."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def report(stored: dict[str, Any] | None, groups: dict[str, dict[str, Any]], config: SpeedConfig) -> None:
    """What moved, where there is something to compare with."""
    if stored is None:
        sys.stdout.write("nothing stored to compare with; store=true stores these figures\n")
        return
    before = {name: row for name, row in stored["figures"]["Figures"].items() if config.only in name}
    lines = what_moved(before, groups["Figures"])
    sys.stdout.write("\n".join(lines or ["no figure moved by more than its spread"]) + "\n")


if __name__ == "__main__":
    main()

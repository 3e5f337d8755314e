"""Speed beside its ceilings: `python -m benchmarks.speed [device=cuda] [store=true]`; on the CPU about five minutes of
one core.

Prints every figure and what moved since the figures in benchmarks/results/speed_<device>.json, which only store=true
overwrites.
"""

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_results
from benchmarks.speed.ceilings import Kernel, build_kernels, take_turn
from benchmarks.speed.figures import Figure, Measured, Round, Workload, measure
from benchmarks.speed.peers import PEERS, not_installed, peers
from benchmarks.speed.plan import PLANS, Arithmetic, Plan, Setting, SpeedConfig, rounding_as
from benchmarks.speed.record import NOTE, ceilings, device_name, what_moved
from benchmarks.speed.targets import targets
from benchmarks.speed.training_steps import training
from benchmarks.speed.workloads import inference
from magvit_scale.config import Refusal, parse, refusals_end_the_program
from magvit_scale.freed_memory import keep_freed_memory
from magvit_scale.training.peak import peak_flops

RESULTS = Path(__file__).parents[1] / "results"
TITLES = {"cpu": "Speed on the CPU", "cuda": "Speed on a GPU"}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, and stores where it is asked to."""
    with refusals_end_the_program("speed"):
        config = parse(SpeedConfig, argv)
        refuse_impossible(config)
        if config.device == "cpu":
            keep_freed_memory()  # as the programs do, kernels and peers too
        path = RESULTS / f"speed_{config.device}.json"
        groups = group(run(PLANS[config.device], config), config)
        report(json.loads(path.read_text()) if path.exists() else None, groups, config)
        if config.store:
            command = f"python -m benchmarks.speed device={config.device} store=true"
            write_results(path, TITLES[config.device], command, groups, NOTE)


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


def run(plan: Plan, config: SpeedConfig) -> Found:
    """All figures, told as they come."""
    found, end = Found(), time.monotonic() + 60 * config.minutes
    for arithmetic in plan.ceilings_in:
        setting = Setting(plan, arithmetic, torch.device(config.device))
        with rounding_as(arithmetic):
            kernels = build_kernels(setting)
            found.rounds[arithmetic] = [Round(take_turn(kernels), {})]
        for workload in workloads(setting):
            if config.only in workload.name and time.monotonic() < end:
                add(found, workload, kernels, config)
            elif config.only in workload.name:
                found.failures[f"{workload.name}, {arithmetic}"] = f"not begun within minutes={config.minutes:g}"
    return found


def add(found: Found, workload: Workload, kernels: Sequence[Kernel], config: SpeedConfig) -> None:
    """Measures one workload; without figures where the device has too little memory for it."""
    try:
        measured = measure(workload, kernels, torch.device(config.device), config.rounds)
    except torch.OutOfMemoryError:
        measured = Measured({}, [], {f"{workload.name}, {workload.arithmetic}": "more memory than the device has"})
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
    return [*inference(setting), *training(setting), *peers(setting)]


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

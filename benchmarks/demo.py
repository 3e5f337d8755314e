"""Where the demo's time goes: `python -m benchmarks.demo runs/demo`, a finished `make demo`; two minutes of one core.

Seconds by stage from the stages' own records, the share of a training stage outside of its steps from what it logged,
and the hottest operators of some steps of the training stages, run once more on one process under torch's profiler.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import write_results
from magvit_scale.config import Refusal, refusals_end_the_program

OUTPUT = Path(__file__).parent / "results" / "demo.json"
STARTED = "stages/*.started.json"
"""The launcher's note of a stage, within the run folder."""
FIRST, LAST = 4, 9
"""Profiled steps; those before them warm up."""
BETWEEN = "Python between them"
NOTE = """Stages ran as processes on all cores: seconds are the clock's, from the launcher's start of a stage to its
start of the next one. Start: until the stage's program is called - the launcher, Python, imports, of which torch alone
takes a second. End: from the program's end to the next stage. Both are outside of a stage's work; of a training stage
so is what comes before its first step - engines, and meeting the other ranks - and after its export, inflation
included, and its waiting for data; steps, checkpoints, what TensorBoard shows of held-out clips and the export are its
work. Operators: share of
the profiled steps' time, without what they call; the 3D VQGAN with its discriminator, which in the demo works in the
last quarter."""
OUTSIDE = "outside of its work"
_HEADINGS = ("seconds", "of the demo", "start", "end", "in its steps", OUTSIDE)

DONE = {
    "linear layers of commit": "were aten::mm by MKL, 62% of its steps; by oneDNN up to twice the rate "
    "(magvit_scale/linear.py), and are still the first",
    "convolutions of both VQGANs": "those before a mean or behind a repetition of cells are one with it, for 8 of 27 "
    "multiplications (magvit_scale/vqgan/resampling.py); else left: oneDNN's already. With channels last they would be "
    "faster, and torch's GroupNorm on a CPU would have 250 times the error",
    "the discriminator": "logits of real clips come from r1's own pass: a quarter of its operations less; the "
    "generator's update asks for no gradient of its weights",
    "attention, GELU, padding, pooling": "left: torch's own kernels",
    "aten::copy_": "left: heads of attention, DeepSpeed's flat gradients, windows of convolutions that resample",
    "memory that the kernel clears anew": "stays in the process (magvit_scale/freed_memory.py): little at these sizes, "
    "a quarter of the time of tokenizing at the paper's",
    "starts and ends of stages": "imports without a search for garbage, no tidying up at a good end "
    "(magvit_scale/lifetime.py); no DeepSpeed where nothing is trained; nothing compiled of DeepSpeed's own optimiser "
    "(training/engines.py), which was most of a second of every training; a host that does not wait for its next beat "
    "to leave (training/watchdog.py), up to a second",
    "stages of seconds": "inflation, the second split of tokens, claims, evaluation and report run in processes that "
    "are there already (`then` in configs/pipeline/demo.yaml): five starts less",
    "what is left outside of work": "importing torch and DeepSpeed, a second and a half; of training stages also "
    "making engines, another one",
}
"""About the hottest places."""


@dataclass(frozen=True)
class Trained:
    """A training stage, and how it is run once more."""

    stage: str
    program: str
    config: str
    overrides: Sequence[str]


TRAINED = (
    Trained("vqgan_2d", "train_vqgan", "vqgan/demo_2d", ("clips.shards={root}/shards",)),
    Trained("vqgan_3d", "train_vqgan", "vqgan/demo_3d", ("clips.shards={root}/shards", "loss.adversarial_start=0")),
    Trained(
        "commit", "train_commit", "commit/demo", ("tokens={root}/tokens/train", "tokenizer={root}/vqgan_3d/export")
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes results/demo.json."""
    with refusals_end_the_program("demo"):
        root = finished_demo(sys.argv[1:] if argv is None else argv)
    groups: dict[str, Any] = {"Seconds by stage": by_stage(root)}
    for trained in TRAINED:
        groups[f"Hottest operators of {trained.stage}"] = hottest(profile(trained, root))
    groups["What was done about them"] = DONE
    write_results(OUTPUT, "Where the demo's time goes", "python -m benchmarks.demo runs/demo", groups, NOTE)
    sys.stdout.write(json.dumps(groups, indent=1) + "\n")


def finished_demo(arguments: Sequence[str]) -> Path:
    """The run folder that is named.

    Raises:
        Refusal: none is, or it holds no demo that ran to its end.
    """
    if len(arguments) != 1:
        raise Refusal(f"found {len(arguments)} arguments, expected the run folder of a finished `make demo`")
    root = Path(arguments[0]).resolve()
    for name in (*(trained.stage for trained in TRAINED), *map(_name, root.glob(STARTED))):
        if not (marker := root / "stages" / f"{name}.json").exists():
            raise Refusal(f"{marker} is missing; expected the run folder of a finished `make demo`")
    return root


def by_stage(root: Path) -> dict[str, dict[str, str]]:
    """Rows in the order of the stages, and one of them together.

    Raises:
        Refusal: the demo was run by a version that did not record what this one shows.
    """
    stages = sorted((_read(started, root) for started in root.glob(STARTED)), key=lambda stage: stage.began)
    ends = [*(stage.began for stage in stages[1:]), stages[-1].ended]
    whole = stages[-1].ended - stages[0].began
    rows = {stage.name: _row(stage, left, whole) for stage, left in zip(stages, ends, strict=True)}
    outside = whole - sum(stage.worked for stage in stages)
    return rows | {"all": dict.fromkeys(_HEADINGS, "") | {"seconds": f"{whole:.1f}", OUTSIDE: f"{outside / whole:.1%}"}}


@dataclass(frozen=True)
class Lived:
    """When a stage's first process was started and its last one had ended, seconds since 1970, and what lay between."""

    name: str
    began: float
    ended: float
    main_seconds: float
    steps_seconds: float
    worked: float


def _read(started: Path, root: Path) -> Lived:
    name = _name(started)
    marker = started.with_name(f"{name}.json")
    began, ended = json.loads(started.read_text()), json.loads(marker.read_text())
    if "time" not in began or "main_seconds" not in ended:
        raise Refusal(f"{marker} does not say when the stage began and worked; run `make demo` again")
    in_steps, worked = 0.0, ended["main_seconds"]
    if (metrics := root / name / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        written = max(path.stat().st_mtime for path in [*(root / name / "export").rglob("*.*"), metrics])
        in_steps, worked = seconds_in_steps(lines), seconds_of_training(lines, written)
    return Lived(name, began["time"], ended["time"], ended["main_seconds"], in_steps, worked)


def _name(started: Path) -> str:
    return started.name.removesuffix(".started.json")


def _row(stage: Lived, left: float, whole: float) -> dict[str, str]:
    seconds = left - stage.began
    cells = (
        f"{seconds:.1f}", f"{seconds / whole:.1%}", f"{stage.ended - stage.main_seconds - stage.began:.1f} s",
        f"{left - stage.ended:.1f} s", f"{stage.steps_seconds / seconds:.1%}" if stage.steps_seconds else "",
        f"{1 - stage.worked / seconds:.1%}",
    )  # fmt: skip
    return dict(zip(_HEADINGS, cells, strict=True))


def seconds_of_training(lines: Sequence[dict[str, float]], written: float) -> float:
    """From the first step of a run to its export, written at that time, without its waiting for data: steps,
    checkpoints, samples, the export.
    """
    logs = [line for line in lines if "perf/step_s" in line]
    began = logs[0]["time"] - logs[0]["step"] * logs[0]["perf/step_s"]
    counts = np.diff([0, *(log["step"] for log in logs)])
    waited = counts @ [log["perf/data_wait_s"] for log in logs]
    return float(written - began - waited)


def seconds_in_steps(lines: Sequence[dict[str, float]]) -> float:
    """All steps of a run, without their waiting for data, from the lines of its metrics.jsonl."""
    logs = [line for line in lines if "perf/step_s" in line]
    counts = np.diff([0, *(log["step"] for log in logs)])
    return float(counts @ [log["perf/step_s"] - log["perf/data_wait_s"] for log in logs])


def profile(trained: Trained, root: Path) -> str:
    """The profiler's table of some steps in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"configs/{trained.config}.yaml", f"run.folder={folder}/run", f"run.steps={LAST}"]
        arguments += [f"run.profile_steps=[{FIRST},{LAST}]", "run.sample_every=0", "run.checkpoint_every=1000"]
        arguments += [override.format(root=root) for override in trained.overrides]
        code = f"import sys; from magvit_scale import {trained.program} as program; program.main(sys.argv[1:])"
        repository = Path(__file__).parents[1]
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=True, cwd=repository)
        return next(Path(folder, "run", "profile").glob("*.txt")).read_text()


def hottest(table: str) -> dict[str, dict[str, str]]:
    """Rows of a profiler's table, as it is: by their time without what they call."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    place = next(index for index, cells in enumerate(lines) if cells[0] == "Name")
    heading, rule, *cells = lines[place:]
    rows = [dict(zip(heading, row, strict=True)) for row in cells if len(row) == len(heading) and row != rule]
    return {
        BETWEEN if row["Name"] == "ProfilerStep*" else row["Name"]: {
            "share": row["Self CPU %"],
            "calls": row["# of Calls"],
        }
        for row in rows
    }


if __name__ == "__main__":
    main()

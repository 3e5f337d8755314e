"""Runs the stages of a chain one after the other, on this machine or as SLURM jobs. Knows no model.

    python -m slurm.launch configs/pipeline/demo.yaml root=runs/demo minutes=15
    python -m slurm.launch CONFIG... [key=value ...] --dry-run

Finished stages are skipped and a half-finished one continues, so the same command carries on after any interruption.
"""

import os
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from magvit_scale.config import LaunchConfig, parse, refusals_end_the_program
from magvit_scale.files import only_process, write_json
from slurm import snapshot
from slurm.cluster import batch_script, refuse_living, submit_chain
from slurm.job import finish, forget_ranks, run_program
from slurm.local import StageFailure, run_local
from slurm.plan import plan
from slurm.resolve import resolve
from slurm.stages import Stage, recorded_seconds, refuse_changes

CANCELLED_STATUS = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Plans the chain, refuses a run folder of other arguments or with living jobs, runs what is not finished."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = parse(LaunchConfig, [argument for argument in arguments if argument != "--dry-run"])
    stages = plan(config)
    if "--dry-run" in arguments:
        return _print_plan(stages, config)
    in_use = f"{config.root} is in use by another launcher; wait for it, or give another root="
    with only_process(Path(config.root, "launch.lock"), in_use), _says_how_to_continue(arguments):
        for stage in stages:
            refuse_changes(stage)
        refuse_living(stages)
        _note_chain(stages, config, arguments)
        _make_importable()
        return _submit(stages, config) if config.cluster == "slurm" else _run(stages, config)


def _run(stages: list[Stage], config: LaunchConfig) -> None:
    began = time.monotonic()
    for number, stage in enumerate(stages, 1):
        _say(f"== stage {number}/{len(stages)} {stage.name} ==")
        if stage.is_finished:
            _say("finished before")
            continue
        write_json(stage.started_marker, stage.record(time=time.time()))
        forget_ranks(stage)
        _run_here(stage) if config.cluster == "debug" else run_local(stage)
        forget_ranks(stage)
        _say(f"{stage.name} took {_clock(recorded_seconds(stage))}")
    _print_summary(stages, config, time.monotonic() - began)


def _run_here(stage: Stage) -> None:
    began = time.monotonic()
    main_seconds = sum(run_program(call) for call in stage.calls)
    finish(stage, 0, time.monotonic() - began, main_seconds)


def _submit(stages: list[Stage], config: LaunchConfig) -> None:
    waiting = _unfinished(stages)
    resolve(waiting)
    code = snapshot.take(Path(config.root, "stages", "code"))
    for name, job_id in submit_chain(waiting, code).items():
        _say(f"{name:<24}job {job_id}")
    _say(f"{len(waiting)} of {len(stages)} stages submitted, the others were finished before")
    _say(f"how they fare: python -m slurm.status {shlex.quote(config.root)}")


def _unfinished(stages: list[Stage]) -> list[Stage]:
    """The stages to run: a table of a sweep is made again after any of its points."""
    found: list[Stage] = []
    for stage in stages:
        if not stage.needs_success and found:
            stage.marker.unlink(missing_ok=True)
        if not stage.is_finished:
            found.append(stage)
    return found


def _note_chain(stages: list[Stage], config: LaunchConfig, arguments: list[str]) -> None:
    chain = {"arguments": arguments, "cwd": os.getcwd(), "cluster": config.cluster, "stages": [s.name for s in stages]}
    write_json(Path(config.root, "stages", "chain.json"), chain)


@contextmanager
def _says_how_to_continue(arguments: list[str]) -> Iterator[None]:
    again = f"to continue: python -m slurm.launch {shlex.join(arguments)}"
    try:
        yield
    except StageFailure as failure:
        raise SystemExit(f"{failure}\n{again}") from failure
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\ncancelled; no process is left, and what is finished stays\n{again}\n")
        raise SystemExit(CANCELLED_STATUS) from interrupt


def _make_importable() -> None:
    # A job's pickle names `slurm.job` only, and `slurm` and `data_prep` are folders of the repository, not installed;
    # programs of the user's may lie where the launcher was started.
    before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [str(snapshot.CHECKOUT), os.getcwd(), *before]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def _print_plan(stages: list[Stage], config: LaunchConfig) -> None:
    resolved = resolve(stages)
    for number, stage in enumerate(stages, 1):
        for place, call in enumerate(stage.calls):
            title = f"{'':>5}then" if place else f"{number:>2} {stage.name}"
            _say(f"{title}  ({1 if call.alone else stage.config.tasks} x python -m {call.program})")
            for argument in call.argv:
                _say(f"       {argument}")
            if text := resolved.get((stage.name, call)):
                _say(f"   its configuration:\n{textwrap.indent(text, '       ')}")
    if config.cluster == "slurm":
        code = snapshot.path_of(Path(config.root, "stages", "code"))
        for name, group in groupby(stages, key=lambda stage: stage.group):
            _say(f"== batch script of {name} ==\n{batch_script(list(group), code)}")


def _print_summary(stages: list[Stage], config: LaunchConfig, seconds: float) -> None:
    _say("\ntime per stage")
    for stage in stages:
        _say(f"  {stage.name:<24}{_clock(recorded_seconds(stage)):>9}")
    _say(f"  {'this start':<24}{_clock(seconds):>9}")
    _say(f"\nreport:      {Path(config.root, 'report.html')}")
    _say(f"tensorboard: tensorboard --logdir {shlex.quote(config.root)}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    with refusals_end_the_program("slurm.launch"):
        main()

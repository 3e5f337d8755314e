"""Runs one stage as processes of this machine, and sees to it that none of them outlives the stage or the launcher."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import submitit

from slurm.follow import LogFollower, explain_failure
from slurm.guard import Lifeline
from slurm.job import Job, free_port
from slurm.stages import Stage

NO_TIME_LIMIT_MINUTES = 365 * 24 * 60
POLL_INTERVAL_S = 0.05
STOP_TIMEOUT_S = 15.0


class StageFailure(Exception):
    """A process of a stage ended before its work was done; the message says why, and where to read on."""


def run_local(stage: Stage) -> None:
    """Runs the stage to its end and shows the log of rank 0.

    Raises:
        StageFailure: a process failed; the others have been ended.
    """
    lifeline = Lifeline(stage.logs)
    try:
        job = _submit(stage, lifeline)
        try:
            _follow(job, lifeline)
        finally:
            lifeline.release()
            _wait_for_end(job)
        if not stage.is_finished:
            raise StageFailure(_failure(stage, job, lifeline))
    finally:
        lifeline.remove()


def _submit(stage: Stage, lifeline: Lifeline) -> "submitit.Job[None]":
    executor = submitit.AutoExecutor(folder=stage.logs, cluster="local")
    executor.update_parameters(
        tasks_per_node=stage.config.tasks,
        gpus_per_node=stage.config.gpus_per_node,
        timeout_min=NO_TIME_LIMIT_MINUTES,
    )
    with _stderr_to(stage.logs / "submitit.log"):
        return executor.submit(Job(stage=stage, lifeline=str(lifeline.path), port=free_port()))


def _follow(job: "submitit.Job[None]", lifeline: Lifeline) -> None:
    follower = LogFollower([job.paths.stdout, job.paths.stderr])
    try:
        while not job.done() and not lifeline.dead_ranks():
            follower.copy()
            time.sleep(POLL_INTERVAL_S)
    finally:
        follower.close()


def _wait_for_end(job: "submitit.Job[None]") -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not job.done() and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)


def _failure(stage: Stage, job: "submitit.Job[None]", lifeline: Lifeline) -> str:
    rank = next(iter(lifeline.dead_ranks()), 0)
    paths = submitit.core.utils.JobPaths(stage.logs, job.job_id, rank)
    reason, last_lines = explain_failure([call.program for call in stage.calls], paths.stdout, paths.stderr)
    lines = [f"stage {stage.name} failed in rank {rank}: {reason}", f"the last lines of {paths.stderr}:"]
    return "\n".join([*lines, *(f"    {line}" for line in last_lines)])


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    # submitit's controller inherits this program's stderr; at Ctrl-C its traceback would bury the launcher's own words.
    kept = os.dup(2)
    try:
        with path.open("a") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

"""What SLURM says about jobs: squeue and scontrol, which are on every cluster; no accounting data base is needed."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from magvit_scale.config import Refusal

LIVING_STATES = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
                 "SIGNALING", "STAGE_OUT", "STOPPED", "PREEMPTED")  # fmt: skip
FIELDS = ("%i", "%T", "%r", "%M", "%l", "%S", "%N")


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue."""

    job_id: str
    state: str
    reason: str
    """Why it waits."""
    elapsed: str
    time_limit: str
    starts: str
    """When it has started or is expected to."""
    nodes: str

    @property
    def is_living(self) -> bool:
        """Whether it runs, waits, or will start again."""
        return self.state in LIVING_STATES


def ask(job_ids: Sequence[str]) -> dict[str, QueuedJob]:
    """The jobs that SLURM still knows, by id; an element of an array as JOB_ELEMENT.

    Raises:
        Refusal: SLURM does not answer, which says nothing of the jobs.
    """
    if not job_ids:
        return {}
    # An unknown id among several makes squeue silent about it, and alone an error.
    answer = _run("squeue", "--noheader", "--array", "--states=all", f"--format={'|'.join(FIELDS)}",
                  f"--jobs={','.join(job_ids)}", forgiven="Invalid job id")  # fmt: skip
    jobs = [QueuedJob(*line.split("|")) for line in answer.splitlines() if line.count("|") == len(FIELDS) - 1]
    return {job.job_id: job for job in jobs}


def cancel(job_ids: Sequence[str], signal: str | None = None) -> None:
    """Takes jobs out of the queue, or sends a signal to the processes of running ones; some may have ended by now."""
    if job_ids:
        _run(
            "scancel", *([f"--signal={signal}"] if signal else []), *job_ids, forgiven="Invalid job id|already complet"
        )


def _run(*command: str, forgiven: str | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Refusal(f"no command {command[0]} here; go to a machine from which SLURM jobs are submitted") from error
    if done.returncode and not (forgiven and re.search(forgiven, done.stderr)):
        raise Refusal(f"{command[0]}: {' '.join(done.stderr.split())}")
    return done.stdout

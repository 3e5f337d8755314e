"""One process of one stage, as submitit runs it on this machine or on a SLURM node. Picklable; knows no model.

The pickle holds arguments only. What a stage has done is on the disk, so a restart from an old pickle (node failure,
bare requeue) continues as well as one from a new pickle.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit

from magvit_scale.config import refusals_end_the_program
from slurm import guard
from slurm.stages import Stage, write_json


@dataclass(frozen=True, kw_only=True)
class Job:
    """Runs a stage's program in this process as one rank of `num_ranks`."""

    stage: Stage
    lifeline: str | None = None
    """File that the launcher keeps locked while a local job may run; null: SLURM looks after the job."""
    port: int | None = None
    """Meeting port of the ranks; null derives it from the job id."""

    def __call__(self) -> None:
        """Sets the environment that torchrun would set, runs the program, notes that this rank has ended well."""
        started = time.monotonic()
        here = submitit.JobEnvironment()
        here.paths.result_pickle.unlink(missing_ok=True)
        watcher = self._guarded(here.global_rank)
        done = _rank_marker(self.stage, here.global_rank)
        done.unlink(missing_ok=True)
        os.environ.update(rank_environment(here, self.port))
        run_program(self.stage)
        write_json(done, {"seconds": round(time.monotonic() - started, 1)})
        finish(self.stage, here.num_tasks, time.monotonic() - started)
        if watcher:
            watcher.kill()
            watcher.wait()
        # Python drops its own handler on the way out, and a late preemption signal would then fail a finished job.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Asks for the same job again: the disk is the truth."""
        return submitit.helpers.DelayedSubmission(self)

    def _guarded(self, rank: int) -> "subprocess.Popen[bytes] | None":
        if self.lifeline is None:
            return None
        os.setsid()
        return subprocess.Popen([sys.executable, "-I", guard.__file__, self.lifeline, str(rank), str(os.getpid())])


def run_program(stage: Stage) -> None:
    """Calls the stage's main(argv); bad input becomes one line on stderr and exit status 1."""
    with refusals_end_the_program(stage.program):
        importlib.import_module(stage.program).main(list(stage.argv))


def finish(stage: Stage, num_ranks: int, seconds: float) -> None:
    """Writes the stage's marker if every rank has ended well; the last rank to end finds that so."""
    ranks = [_rank_marker(stage, rank) for rank in range(num_ranks)]
    if all(rank.exists() for rank in ranks):
        write_json(stage.marker, stage.record(seconds=round(seconds, 1)))
        forget_ranks(stage)


def forget_ranks(stage: Stage) -> None:
    """Removes the notes of single ranks, so that those of one attempt cannot finish the stage for another."""
    for marker in Path(stage.folder).glob(f"{stage.name}.rank*.json"):
        marker.unlink(missing_ok=True)


def rank_environment(here: submitit.JobEnvironment, port: int | None) -> dict[str, str]:
    """The variables that torch.distributed and DeepSpeed read; DeepSpeed needs all five or it looks for MPI."""
    num_local_ranks = max(1, here.num_tasks // here.num_nodes)
    environment = {
        "RANK": str(here.global_rank),
        "LOCAL_RANK": str(here.local_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": here.hostnames[0] if port is None else "127.0.0.1",
        "MASTER_PORT": str(port or _port_of_job(here)),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, _num_cores() // num_local_ranks))
    return environment


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _port_of_job(here: submitit.JobEnvironment) -> int:
    # A new port per restart: the old one may still be in TIME_WAIT.
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return 20_000 + (int(here.raw_job_id) * 7 + restarts) % 12_000


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rank_marker(stage: Stage, rank: int) -> Path:
    return Path(stage.folder, f"{stage.name}.rank{rank}.json")

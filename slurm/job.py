"""One process of one stage, as submitit runs it on this machine or on a SLURM node. Picklable; knows no model.

The pickle holds arguments only. What a stage has done is on the disk, so a restart from an old pickle (node failure,
bare requeue) continues as well as one from a new pickle.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit

from magvit_scale.config import refusals_end_the_program
from magvit_scale.files import write_json
from magvit_scale.lifetime import imported, leaves_at_once
from magvit_scale.training.launched import ALONE, NUM_PORTS, hostnames, node_name, port_of
from magvit_scale.training.signals import STOPPED_STATUS
from slurm import guard, preflight
from slurm.stages import Call, Stage, read_marker

LOCAL_POLL_S, SHARED_POLL_S = 0.02, 1.0
"""How often a rank looks whether the others have come as far; on a cluster all of them ask one file system."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Runs a stage's programs in this process, as one of its ranks."""

    stage: Stage
    lifeline: str | None = None
    """File that the launcher keeps locked while a local job may run; null: SLURM looks after the job."""
    port: int | None = None
    """Meeting port of the ranks; null derives it from the job id."""

    def __call__(self) -> None:
        """Sets the environment that torchrun would set, runs the programs, notes how this rank has ended."""
        with leaves_at_once():
            self._run()

    def _run(self) -> None:
        started = time.monotonic()
        here = submitit.JobEnvironment()
        here.paths.result_pickle.unlink(missing_ok=True)
        watcher = self._guarded(here.global_rank)
        stop_when_asked()
        if self.lifeline is None:
            os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # for which the arguments hold; the copied code is where it began
        with _noted(self.stage, here.global_rank):
            os.environ.update(rank_environment(here, self.stage, self.port))
            if preflight.is_wanted(self.stage) and self.lifeline is None:
                preflight.examine(self.stage, attempt(), NUM_PORTS + _port_of_start())
            main_seconds = self._run_calls(here.global_rank, here.num_tasks)
        finish(self.stage, here.num_tasks, time.monotonic() - started, main_seconds)
        if watcher:
            watcher.kill()
            watcher.wait()
        # Python drops its own handlers on the way out, and a late preemption signal would then fail a finished job.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _run_calls(self, rank: int, num_ranks: int) -> float:
        """Seconds that the mains of the stage's programs took, each when all ranks had ended the one before well."""
        seconds = 0.0
        for number, call in enumerate(self.stage.calls):
            began = time.monotonic()
            if not call.alone:
                seconds += run_program(call)
            elif rank == 0:
                with _alone():
                    seconds += run_program(call)
            if len(self.stage.calls) > 1:
                self._wait_for_others(number, rank, num_ranks)
            if call.alone and rank > 0:
                seconds += time.monotonic() - began
        return seconds

    def _wait_for_others(self, number: int, rank: int, num_ranks: int) -> None:
        """Also after the last call, or srun might take the ranks that have ended for a sign of trouble. A rank that
        ends badly has all of them ended, by the guards or by srun (--kill-on-bad-exit).
        """
        write_json(self.stage.call_marker(attempt(), number, rank), {})
        missing = list(range(num_ranks))
        while missing := [rank for rank in missing if not self.stage.call_marker(attempt(), number, rank).exists()]:
            time.sleep(LOCAL_POLL_S if self.lifeline else SHARED_POLL_S)

    def _guarded(self, rank: int) -> "subprocess.Popen[bytes] | None":
        if self.lifeline is None:
            return None
        os.setsid()
        return subprocess.Popen([sys.executable, "-I", guard.__file__, self.lifeline, str(rank), str(os.getpid())])


def attempt() -> str:
    """Name of this start of the job, which no other start of any job shares."""
    return f"{os.environ.get('SLURM_JOB_ID', 'local')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def stop_when_asked() -> None:
    """Lets SIGTERM and SIGUSR2 end this process with STOPPED_STATUS, so that the batch script starts the job again.

    In place of submitit's handlers: those requeue from rank 0 while the others go on, and take SIGTERM for nothing.
    Programs that have something to save handle the signals themselves meanwhile.
    """

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(STOPPED_STATUS)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR2, stop)


def run_program(call: Call) -> float:
    """Calls a program's main(argv); bad input becomes one line on stderr and exit status 1.

    Returns:
        Seconds that main took, which importing it did not.
    """
    with refusals_end_the_program(call.program), imported(call.program) as program:
        began = time.monotonic()
        try:
            program.main(list(call.argv))
        except SystemExit as end:
            if end.code:  # none and 0 are good ends
                raise
        return time.monotonic() - began


@contextmanager
def _alone() -> Iterator[None]:
    """The environment of a lone process, for a program that may look for its ranks."""
    before = {name: os.environ[name] for name in ALONE}
    os.environ.update(ALONE)
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _noted(stage: Stage, rank: int) -> Iterator[None]:
    note: dict[str, Any] = {"status": 1, "why": "", "is_refusal": False, "host": node_name()}
    try:
        yield
        note["status"] = 0
    except SystemExit as end:
        is_number = end.code is None or isinstance(end.code, int)
        note |= {"status": end.code or 0} if is_number else {"why": str(end.code), "is_refusal": True}
        raise
    except Exception as error:
        note["why"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        write_json(stage.rank_marker(attempt(), rank), note | {"time": time.time()})


def finish(stage: Stage, num_ranks: int, seconds: float, main_seconds: float) -> None:
    """Writes the stage's marker if every rank has ended well; the last rank to end finds that so.

    Args:
        stage: of this rank.
        num_ranks: of the stage.
        seconds: that this rank took, importing included.
        main_seconds: of them those that the program's main took.
    """
    notes = read_notes(stage, attempt())
    if sum(note["status"] == 0 for note in notes.values()) == num_ranks:
        # The notes stay: another rank may be reading them to the same end.
        took = {"seconds": round(seconds, 1), "main_seconds": round(main_seconds, 2), "time": time.time()}
        write_json(stage.marker, stage.record(**took, job_id=_job_id(stage)))


def read_notes(stage: Stage, of_attempt: str) -> dict[int, dict[str, Any]]:
    """What the ranks of an attempt have noted at their ends; those that were killed have noted nothing."""
    paths = Path(stage.folder).glob(f"{stage.name}.{of_attempt}.rank*.json")
    return {int(path.stem.rpartition("rank")[2]): json.loads(path.read_text()) for path in paths}


def forget_ranks(stage: Stage) -> None:
    """Removes the notes of single ranks, so that those of one attempt cannot finish the stage for another."""
    for marker in Path(stage.folder).glob(f"{stage.name}.*.rank*.json"):
        marker.unlink(missing_ok=True)


def rank_environment(here: submitit.JobEnvironment, stage: Stage, port: int | None) -> dict[str, str]:
    """The variables that torch.distributed and DeepSpeed read; DeepSpeed needs all five or it looks for MPI."""
    num_local_ranks = max(1, here.num_tasks // here.num_nodes)
    environment = {
        "RANK": str(here.global_rank),
        "LOCAL_RANK": str(here.local_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": _first_host(here) if port is None else "127.0.0.1",
        "MASTER_PORT": str(port or _port_of_start()),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, _num_cores() // num_local_ranks))
    if interface := stage.resources.interface:
        environment |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    return environment


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_host(here: submitit.JobEnvironment) -> str:
    # A job that has shrunk uses some of its nodes only.
    step = os.environ.get("SLURM_STEP_NODELIST")
    return str(here.hostnames[0]) if step in (None, os.environ.get("SLURM_JOB_NODELIST")) else hostnames(step)[0]


def _port_of_start() -> int:
    # Another one for every restart: a process that a former start left behind knows only its own.
    job_id, restarts = (int(part) for part in attempt().split("-"))
    return port_of(job_id, restarts)


def _job_id(stage: Stage) -> str | None:
    return read_marker(stage.started_marker)["job_id"] if stage.started_marker.exists() else None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Starts a function as several processes that find each other over gloo, and shows the traceback of one that fails."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.lifetime import leaves_at_once
from slurm.job import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_INTERVAL_S = 0.1
NUM_SHOWN_CHARACTERS = 6000


class Launch:
    """`num_ranks` processes that call `function(folder)`, a name as `package.module:function`."""

    def __init__(self, function: str, num_ranks: int, folder: Path) -> None:
        self.function, self.num_ranks = function, num_ranks
        self.logs = [folder / f"{function.split(':')[1]}_{num_ranks}.rank{rank}.log" for rank in range(num_ranks)]
        port = str(free_port())
        self.processes = [self._start(rank, port, folder) for rank in range(num_ranks)]

    @property
    def has_failed(self) -> bool:
        """Whether a process has ended badly."""
        return any(process.poll() for process in self.processes)

    @property
    def has_ended(self) -> bool:
        """Whether all processes have ended well."""
        return all(process.poll() == 0 for process in self.processes)

    def describe(self) -> str:
        """Exit statuses (None: still running) and the end of every log."""
        logs = "\n".join(f"--- rank {rank}\n{_end_of(path)}" for rank, path in enumerate(self.logs))
        return f"{self.function} on {self.num_ranks} ranks: {[process.poll() for process in self.processes]}\n{logs}"

    def end(self) -> None:
        """Leaves no process behind."""
        for process in self.processes:
            process.kill()
            process.wait()

    def _start(self, rank: int, port: str, folder: Path) -> "subprocess.Popen[bytes]":
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.num_ranks)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.launching", self.function, str(folder)]
        with self.logs[rank].open("wb") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env={**os.environ, **place, **meeting}, stdout=log, stderr=subprocess.STDOUT
            )


def run_distributed(launches: Sequence[Launch], timeout_s: float = 120) -> None:
    """Waits for all launches; the first process that fails ends them all.

    Raises:
        AssertionError: one failed or they took too long; with the end of every log.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while not all(launch.has_ended for launch in launches):
            failed = [launch for launch in launches if launch.has_failed]
            if failed or time.monotonic() > deadline:
                raise AssertionError("\n".join(launch.describe() for launch in failed or launches))
            time.sleep(POLL_INTERVAL_S)
    finally:
        for launch in launches:
            launch.end()


def wait_for(path: Path, timeout_s: float = 90) -> None:
    """Waits until another process has made a file."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear in {timeout_s} s"
        time.sleep(POLL_INTERVAL_S)


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-NUM_SHOWN_CHARACTERS:]


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    with leaves_at_once():
        getattr(importlib.import_module(module), name)(Path(sys.argv[2]))

"""Daemons and nodes as processes: each dies with the program that started it, and nothing else is ever signalled."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path


class Daemon:
    """A program in the background.

    The kernel kills it when the thread that started it ends, however that ends: start daemons from the main thread.

    Args:
        command: the program and its arguments.
        log: where its output is appended.
        environment: all of its variables.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._victim = self._process.pid
        self._started = start_time(self._victim)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        kill(self._victim, self._started)
        self._process.wait()


class Machine(Daemon):
    """A daemon with all of its descendants in a pid name space: its command begins with `unshare --pid --fork
    --kill-child`.

    The first process there is the machine's power: it is the one that `kill` kills, and the kernel then ends all
    others before `kill` returns.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        super().__init__(command, log, environment)
        wait_until("the first process of a machine", lambda: bool(self._children()), 10, log)
        self._victim = self._children()[0]
        self._started = start_time(self._victim)

    @property
    def pid(self) -> int:
        """Of the first process in there, as seen from here."""
        return self._victim

    def _children(self) -> list[int]:
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot: with the pid a name that no later process can have."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def kill(pid: int, started: str | None) -> None:
    """SIGKILL for the process with this pid and start time; nothing if there is none."""
    if started is None:
        return
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            # The handle is of one process, even if its pid is given to another between these two lines.
            if start_time(pid) == started:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def wait_until(what: str, is_so: Callable[[], bool], seconds: float, log: Path) -> None:
    """Asks ten times a second.

    Raises:
        TimeoutError: it is not so in time; with the end of the log.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise TimeoutError(f"waited {seconds:g} s for {what}; the end of {log}:\n{end}")
        time.sleep(0.1)

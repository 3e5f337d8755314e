"""Requests to stop: SIGTERM, SIGUSR1 and SIGUSR2 set a flag, the loop saves at a step boundary and ends.

After every rank has saved, every rank ends with status 75 (`STOPPED_STATUS`, EX_TEMPFAIL): the same command continues
the run. In a SLURM job the batch script, which outlives its ranks, then puts the job back into the queue
(slurm/attempts.py); submitit's own handlers play no part.

Before and after the loop the former handlers are in force: without any, a signal kills a process that has nothing
unsaved; slurm/job.py ends it with 75. A request that comes after the last step is dropped: the work is done,
and what may follow in the same processes is short.

NCCL may take USR1 for itself; prefer USR2 on GPUs. torchrun passes SIGTERM on, kills what is left 30 s later and ends
with a status of its own; it dies of USR1 and USR2, so send those to a rank. Knows no torch.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

STOPPED_STATUS = 75
"""Exit status: stopped on request, everything saved, start me again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """While active, remembers the signals that ask this process to stop, and does nothing else about them.

    A context manager for the main thread of every rank. Processes forked meanwhile, such as loader workers, leave
    signals to this process: they ignore USR1 and USR2, and obey SIGTERM only when this process sends it, since
    torchrun and some SLURM clusters send it to them too, while the last step still needs them. (A program that such a
    process starts never sees SIGTERM; end it with SIGKILL.)

    Raises:
        ValueError: entered outside the main thread.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        """Signals so far, the first first; empty while nobody has asked this rank."""
        self._former: dict[signal.Signals, Any] = {}
        self._is_leaving = False

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._remember) for number in SIGNALS}
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.remove(self)
        for number, handler in self._former.items():
            # None: a handler of C code, which Python cannot put back.
            signal.signal(number, signal.SIG_IGN if self._is_leaving else handler or signal.SIG_DFL)

    @property
    def is_requested(self) -> bool:
        """Whether this rank has been asked; all ranks must agree before one acts on it."""
        return bool(self.received)

    def describe(self) -> str:
        """The first signal for the log: its name, or that another rank got it."""
        return self.received[0].name if self.received else "a signal to another rank"

    def end(self) -> NoReturn:
        """Ends this process. Every rank calls it, after all have saved.

        Signals are ignored from here on: a second one does no harm while the interpreter shuts down.

        Raises:
            SystemExit: with STOPPED_STATUS.
        """
        self._is_leaving = True
        raise SystemExit(STOPPED_STATUS)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))


_active: list[StopRequest] = []


def _leave_signals_to_the_parent() -> None:
    """Runs in every forked child."""
    if not _active:
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # A handler is not told who sent the signal, and torch's loader workers install their own; a blocked signal
        # waits for the thread that asks.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _obey_sigterm_of(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
    # As torch's own workers do: torch takes any other status of a worker for a failure of the run.
    os._exit(0)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)

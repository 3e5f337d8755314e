"""Requests to stop: SIGTERM, SIGUSR1 and SIGUSR2 set a flag, the loop saves at a step boundary and ends.

What a launcher sees of a run that was asked to stop, after every rank has saved:

- Status 75 (`STOPPED_STATUS`, EX_TEMPFAIL) on every rank: saved; the same command continues the run.
- In a job of submitit (slurm/job.py), rank 0 hands the signal on to submitit's own handler. For USR2 that one requeues
  the job and exits with 255 (144 in a local job), and the other ranks end with 0, since a task that ends badly may make
  srun kill rank 0 before it has requeued. SIGTERM submitit ignores: SLURM sends it before the SIGKILL of a preempted,
  requeued or cancelled job, and it is SLURM that decides which. A job that exits by itself would not be requeued, so
  rank 0 waits for the SIGKILL, or for USR2 on the heels of SIGTERM, and ends with 75 when neither comes.
- Before and after the loop the former handlers are in force. Without any, a signal kills a process that has nothing
  unsaved; under submitit, USR2 requeues the job at once; slurm/job.py ignores USR2 where submitit cannot catch it yet
  and after the job is done. A request that comes after the last step is dropped: the work is done.

NCCL may take USR1 for itself; prefer USR2 on GPUs, as submitit does. torchrun passes SIGTERM on, kills what is left
30 s later and ends with a status of its own; it dies of USR1 and USR2, so send those to a rank. Knows no torch.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

STOPPED_STATUS = 75
"""Exit status: stopped on request, everything saved, start me again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
OWNER_PATIENCE_S = 600.0
"""How long rank 0 waits for the end that a job's owner has in store for it; longer than usual preemption graces."""
POLL_INTERVAL_S = 0.1


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

    def pass_on(self, rank: int) -> NoReturn:
        """Ends this process, or lets the owner of the job end it. Every rank calls it, after all have saved.

        Signals are ignored from here on: a second one does no harm while the interpreter shuts down.

        Args:
            rank: of this process; only rank 0 speaks to the owner.

        Raises:
            SystemExit: with the statuses that the module describes.
            submitit.core.utils.UncompletedJobError: submitit does not requeue the job any more.
        """
        self._is_leaving = True
        if not self._owned():
            raise SystemExit(STOPPED_STATUS)
        if rank == 0:
            self._ask_owner()
        raise SystemExit(STOPPED_STATUS if rank == 0 else 0)

    def _owned(self) -> list[signal.Signals]:
        """Signals that somebody handled before us."""
        return [number for number, handler in self._former.items() if callable(handler)]

    def _ask_owner(self) -> None:
        """Calls the former handler of every signal, as it comes; returns where they all leave the end to us."""
        deadline = time.monotonic() + OWNER_PATIENCE_S
        num_asked = 0
        while set(self.received) <= set(self._owned()) and time.monotonic() < deadline:
            for number in self.received[num_asked:]:
                num_asked += 1
                self._former[number](number, None)
            time.sleep(POLL_INTERVAL_S)

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

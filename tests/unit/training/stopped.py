"""Programs that are asked to stop; test_signals.py starts, signals and reads them."""

import multiprocessing
import os
import signal
import sys
import threading
import time

from magvit_scale.training.signals import SIGNALS, StopRequest

LONG_S = 60.0


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def wait_for(stop: StopRequest, num_signals: int) -> None:
    deadline = time.monotonic() + LONG_S
    while len(stop.received) < num_signals and time.monotonic() < deadline:
        time.sleep(0.01)


def alone() -> None:
    """A run without workers."""
    with StopRequest() as stop:
        say("ready")
        wait_for(stop, 1)
        say("saved after", stop.describe())
        stop.end()


def with_workers() -> None:
    """Goes on with a loader of torch after its process group was asked to stop, then ends all children."""
    from torch.utils.data import DataLoader

    with StopRequest() as stop:
        batches = iter(DataLoader(list(range(1000)), batch_size=1, num_workers=2, multiprocessing_context="fork"))
        sleeper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG_S,), daemon=True)
        sleeper.start()
        next(batches)
        say("ready")
        wait_for(stop, len(SIGNALS))
        say("batches", sum(1 for _ in batches))
        say("sleeper", sleeper.is_alive())
        sleeper.terminate()
        sleeper.join(LONG_S)
        say("sleeper", sleeper.is_alive())
        stop.end()


def forking(is_in_a_thread: str) -> None:
    """Says with which status a child ended: 0 where it ignores what is meant for this process."""

    def fork() -> None:
        if (pid := os.fork()) == 0:
            ignored = [signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGUSR1, signal.SIGUSR2)]
            os._exit(0 if ignored == [True, True] else 1)
        say("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with StopRequest():
        if is_in_a_thread == "True":
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        else:
            fork()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

"""Small worlds in which something happens to a rank under the watchdog, all at once: what each rank says, and how it
ends. One process that has torch forks them all.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from magvit_scale.training.watchdog import Watchdog

# Fifty processes start at once, and may share two cores with others.
DEAD_AFTER_S, HANG_AFTER_S = 9.0, 12.0
NUM_STEPS, FATAL_STEP = 6, 3
FOREVER_S = 600.0
LONGEST_WORLD_S = 180.0
HEARD_AFTER_S = 0.5
"""Until the others know where a rank is."""


def kill(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(watchdog: Watchdog) -> None:
    time.sleep(FOREVER_S)


def fail(watchdog: Watchdog) -> None:
    raise ValueError("a defect\nof two lines")


def complain(watchdog: Watchdog) -> None:
    with watchdog.explains_lost_peers():
        raise dist.DistNetworkError("a network that is not down")


def dawdle(watchdog: Watchdog) -> None:
    time.sleep(0.8 * HANG_AFTER_S)


# World: (number of ranks, unlucky ranks, phase, what happens there, whether the others' collectives notice).
Misfortune = Callable[[Watchdog], None]
WORLDS: dict[str, tuple[int, tuple[int, ...], str, Misfortune, bool]] = {
    "killed_1": (3, (1,), "data", kill, True),
    "killed_0": (3, (0,), "step", kill, True),
    "killed_1_unnoticed": (3, (1,), "data", kill, False),
    "killed_0_unnoticed": (3, (0,), "data", kill, False),
    "killed_2_of_4": (4, (1, 3), "data", kill, False),
    "stopped_1": (3, (1,), "checkpoint", stop, True),
    "stopped_0": (3, (0,), "sample", stop, True),
    "sleeping_1": (3, (1,), "data", sleep, True),
    "sleeping_0": (3, (0,), "sample", sleep, True),
    "sleeping_all": (3, (0, 1, 2), "step", sleep, True),
    "sleeping_alone": (1, (0,), "data", sleep, True),
    "failed_1": (3, (1,), "checkpoint", fail, True),
    "failed_0": (3, (0,), "checkpoint", fail, True),
    "failed_0_unnoticed": (3, (0,), "data", fail, False),
    "failed_together": (3, (0, 1, 2), "data", fail, True),
    "complaining_1": (3, (1,), "step", complain, True),
    "well": (3, (1,), "checkpoint", dawdle, True),
}


def train(folder: Path, name: str, rank: int) -> None:
    """The loop of one rank."""
    world_size, unlucky, unlucky_phase, misfortune, do_collectives_notice = WORLDS[name]
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}.meeting", rank=rank, world_size=world_size)
    log = folder / f"{name}.log"
    ports: list[int] = []

    def broadcast(number: int) -> int:
        told = torch.tensor(number)
        dist.broadcast(told, 0)
        ports.append(int(told))
        return int(told)

    def report(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    limits = {"dead_after_s": DEAD_AFTER_S, "hang_after_s": HANG_AFTER_S}
    with Watchdog(rank, world_size, broadcast, report=report, **limits) as watchdog:
        place = {"pid": os.getpid(), "port": ports[0] if ports else None}
        if not (rank in unlucky and misfortune in (kill, stop)):
            # A loader's worker ends by itself when its parent is gone; this one does not.
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(FOREVER_S,), daemon=True)
            worker.start()
            place["worker"] = worker.pid
        (folder / f"{name}.rank{rank}.json").write_text(json.dumps(place))
        for step in range(NUM_STEPS):
            for phase in ("data", "step", "sample", "checkpoint"):
                watchdog.progress(step, phase)
                if step == FATAL_STEP and phase == unlucky_phase and rank in unlucky:
                    time.sleep(HEARD_AFTER_S)
                    misfortune(watchdog)
                if phase == "step":
                    if step == FATAL_STEP and not do_collectives_notice:
                        time.sleep(FOREVER_S)
                    with watchdog.explains_lost_peers():
                        dist.all_reduce(torch.ones(1))
        # One rank has more to do than the host.
        time.sleep(0.5 * DEAD_AFTER_S if rank == 2 else 0)
    dist.destroy_process_group()


def start(folder: Path, name: str, rank: int) -> int:
    """Forks one rank, which leads no group and inherits nothing but torch; returns its pid."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        with (folder / f"{name}.rank{rank}.err").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        train(folder, name, rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # multiprocessing would end the daemons at the end of an ordinary process.
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(status)


def watch(folder: Path, name: str) -> None:
    """Waits for a world's ranks; kills what is stopped when all others have ended, or what has lived too long."""
    world_size, unlucky, _, misfortune, _ = WORLDS[name]
    pids = {rank: start(folder, name, rank) for rank in range(world_size)}
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + LONGEST_WORLD_S

    def gather() -> None:
        expected = world_size - (len(unlucky) if misfortune is stop else 0)
        while len(statuses) < expected and time.monotonic() < deadline:
            time.sleep(0.1)
            for rank in set(pids) - set(statuses):
                pid, status = os.waitpid(pids[rank], os.WNOHANG)
                if pid:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        (folder / f"{name}.statuses.json").write_text(json.dumps(statuses))
        for rank in set(pids) - set(statuses):
            os.kill(pids[rank], signal.SIGKILL)
            os.waitpid(pids[rank], 0)

    thread = threading.Thread(target=gather)
    _threads.append(thread)


_threads: list[threading.Thread] = []

if __name__ == "__main__":
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    for world in sys.argv[2:] or WORLDS:
        watch(Path(sys.argv[1]), world)
    for thread in _threads:
        thread.start()
    for thread in _threads:
        thread.join()

"""Real runs of several ranks that start in a tenth of a second: forks of one process that has imported everything.

`python -m tests.integration.nursery` reads one request a line from stdin and answers with one line of JSON: to the
description of a world with the process numbers of its ranks, to `null` with the exit statuses of all that have ended
since, by number (negative: the signal). `Nursery` is the other side of it.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_INTERVAL_S = 0.05
NUM_SHOWN_CHARACTERS = 4000
# Below the ports that Linux gives to connections, so that nothing takes one between its choice and its use.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class World:
    """The ranks of one start of a program, in a process group of their own."""

    pids: Sequence[int]
    logs: Sequence[Path]

    def said(self, rank: int) -> str:
        """What a rank has said on stdout and stderr."""
        return self.logs[rank].read_text(errors="replace")

    def describe(self) -> str:
        """The end of every log."""
        return "\n".join(
            f"--- rank {rank}\n{self.said(rank)[-NUM_SHOWN_CHARACTERS:]}" for rank in range(len(self.pids))
        )


class Nursery:
    """A context manager: the process whose forks are the ranks. `folder` receives their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._statuses: dict[int, int] = {}
        self._worlds: list[World] = []

    def __enter__(self) -> "Nursery":
        launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in launched}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.integration.nursery"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        # A number of one that has ended may be another program's by now.
        unfinished = [world for world in self._worlds if not set(world.pids) <= set(self._statuses)]
        for pid in (pid for world in unfinished for pid in processes_of(world)):
            os.kill(pid, signal.SIGKILL)
        self._process.communicate(timeout=60)

    def begin(self, arguments: Sequence[str], num_ranks: int = 2, **spell: Any) -> World:
        """Starts `magvit VERB ...` on so many ranks.

        Args:
            arguments: the verb and what it is told.
            num_ranks: processes.
            spell: `cast`, a function as `package.module:function`, is called in every rank before the program, with
                the rank and with the other keywords.
        """
        logs = [self.folder / f"world_{len(self._worlds):03d}.rank{rank}.log" for rank in range(num_ranks)]
        pids = self._ask({"arguments": list(arguments), "logs": list(map(str, logs)), "spell": spell})
        self._worlds.append(World(pids, logs))
        return self._worlds[-1]

    def wait(self, world: World, timeout_s: float = 120) -> list[int]:
        """Waits until all ranks have ended; returns their exit statuses, negative where a signal ended one.

        Raises:
            AssertionError: it took too long; all are killed, and their logs shown.
        """
        deadline = time.monotonic() + timeout_s
        while not all(pid in self._statuses for pid in world.pids):
            if time.monotonic() > deadline:
                os.killpg(world.pids[0], signal.SIGKILL)
                raise AssertionError(f"not all ranks have ended in {timeout_s} s\n{world.describe()}")
            time.sleep(POLL_INTERVAL_S)
            self._statuses |= {int(pid): status for pid, status in self._ask(None).items()}
        return [self._statuses[pid] for pid in world.pids]

    def run(self, arguments: Sequence[str], num_ranks: int = 2, **spell: Any) -> tuple[World, list[int]]:
        """`begin` and `wait`."""
        world = self.begin(arguments, num_ranks, **spell)
        return world, self.wait(world)

    def succeed(self, arguments: Sequence[str], num_ranks: int = 2, **spell: Any) -> World:
        """`run`, where every rank must end well."""
        world, statuses = self.run(arguments, num_ranks, **spell)
        assert statuses == [0] * num_ranks, f"{statuses}\n{world.describe()}"
        return world

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def processes_of(world: World) -> list[int]:
    """Processes of a world that are left, loader workers among them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which is in brackets: state, parent, process group.
            state, _, group, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(group) == world.pids[0] and state not in "ZX":
            found.append(int(process.name))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The process that forks


def main() -> None:
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_ended() if request is None else _begin(**request)), file=answers, flush=True)


def _import_everything() -> None:
    from tqdm import tqdm

    # tqdm's own lock is shared between forks: one that is killed while it holds it would stop all that come after.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # its thread may hold the lock at a fork
    for program in ("train_vqgan", "train_commit", "precompute_tokens"):
        import_module(f"magvit_scale.{program}")
    import deepspeed
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    if (builder := deepspeed.get_accelerator().create_op_builder("ShareMemCommBuilder")) and builder.is_compatible():
        builder.load()  # else every rank waits for ninja


def _begin(arguments: list[str], logs: list[str], spell: dict[str, Any]) -> list[int]:
    port, pids = _free_port(), list[int]()
    for rank, log in enumerate(logs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(logs), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}  # fmt: skip
        pids.append(_fork(arguments, log, {name: str(value) for name, value in place.items()}, pids, spell))
    return pids


def _ended() -> dict[int, int]:
    statuses = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            break
        statuses[pid] = os.waitstatus_to_exitcode(status)
    return statuses


def _fork(arguments: list[str], log: str, place: Mapping[str, str], before: list[int], spell: dict[str, Any]) -> int:
    """Starts one rank; the first of a world leads its process group."""
    pid = os.fork()
    os.setpgid(pid, before[0] if before else pid)  # both sides: whoever comes first
    if pid:
        return pid
    status: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.environ.update(place)
        status = _play(arguments, int(place["RANK"]), **spell)
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stderr.flush()
        os._exit(status)


def _play(arguments: list[str], rank: int, cast: str = "", **spell: Any) -> int:
    """The rank's exit status, as the interpreter would give it."""
    from magvit_scale import cli

    try:
        if cast:
            module, name = cast.split(":")
            getattr(import_module(module), name)(rank=rank, **spell)
        cli.main(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.choice(PORTS)))
            except OSError:
                continue
            return port


if __name__ == "__main__":
    main()

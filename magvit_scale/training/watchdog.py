"""Ends every rank, with one line that names the culprit, when a rank dies or hangs.

Collectives cannot be interrupted and, over NCCL, may wait for a dead peer for ever. So a thread of every rank speaks
through a small store of our own: that the process lives, and in which phase of which step its main thread is.

What a launcher sees, `dead_after_s` + 2 s after a rank fell silent (killed, stopped, its node lost), or
`hang_after_s` + 2 s after the last rank moved:

- on stderr of each remaining rank one line "watchdog: dead or stopped, no word for 60.3 s: rank 1 (host node7, pid
  4242, step 12, phase data); rank 0 ends with status 76", and once in the run's log; a hung rank prints its stacks
  before it;
- status 76 (`LOST_STATUS`): start the same command again; it continues from the last checkpoint. Status 1
  (`FAILED_STATUS`) where the other rank ended with an error of its own: read that one's traceback first;
- no loader worker, process or port left. What was not saved is lost, as after a SIGKILL.

Where the collectives themselves notice a dead peer (gloo does at once), the line comes after a third of `dead_after_s`.
"""

import faulthandler
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist

from magvit_scale.training.heartbeat import DONE, FAILED_STATUS, LOST_STATUS, PHASES, Finding, Heartbeat, Peers

__all__ = ["FAILED_STATUS", "LOST_STATUS", "PHASES", "Watchdog"]

BEATS_TO_DEATH = 60
BEATS_TO_SUSPICION = 20
"""A silence that counts as death once a collective has complained of a lost peer."""
LAST_WORDS_S = 2.0
"""How long the run's log may take: a file system that hangs may be why we end."""
FAREWELL_S = 0.05
"""How often the host asks whether all others have left."""
FINDING = "finding"


class AwakeClock:
    """Seconds in which this process ran: while it is stopped or suspended, it does not take others for silent."""

    def __init__(self, longest_tick_s: float) -> None:
        self._longest_tick_s, self._last, self.now = longest_tick_s, time.monotonic(), 0.0

    def tick(self) -> float:
        """Advances to now, by at most `longest_tick_s`, and returns it."""
        self._last, before = time.monotonic(), self._last
        self.now += min(self._last - before, self._longest_tick_s)
        return self.now


class Watchdog:
    """A context manager around the whole loop; every rank enters, and leaves when its part is done.

    Rank 0 leaves last: it is the host of the store, and waits until all others are done, dead or hung.

    Args:
        rank: of this process.
        world_size: number of ranks; one alone is watched for hanging only.
        broadcast: collective; gives every rank the number that rank 0 passes (the port of the store, at the address
            in MASTER_ADDR). Called once, on entering.
        dead_after_s: a process silent for so long is dead. Longer than any stretch in which a rank may hold the GIL.
        hang_after_s: ranks that all stay in their phases for so long hang; longer than the longest lawful phase
            (a big checkpoint, sampling, the first step with its compilation), and shorter than the timeout of the
            process group (torch: 600 s over NCCL, 1800 s over gloo), which ends the ranks that wait, not the one that
            hangs. 0: never.
        report: appends the line to the run's log; called on one of the remaining ranks, in a thread.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        broadcast: Callable[[int], int],
        *,
        dead_after_s: float = 60.0,
        hang_after_s: float = 1800.0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._rank, self._world_size, self._broadcast, self._report = rank, world_size, broadcast, report
        self._dead_after_s, self._hang_after_s = dead_after_s, hang_after_s
        self._beat_every_s = dead_after_s / BEATS_TO_DEATH
        self._me = Heartbeat(host=socket.gethostname(), pid=os.getpid())
        self._place = (0, 0, PHASES[0])
        self._left = ""
        self._is_suspicious = False
        self._num_answers = 0
        self._wake, self._is_over = threading.Event(), threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> "Watchdog":
        self._store = self._open_store()
        self._clock = AwakeClock(2 * self._beat_every_s)
        self._peers = Peers(self._world_size, self._clock.now)
        self._speaker = threading.Thread(target=self._speak, daemon=True)
        self._speaker.start()
        if self._rank > 0:
            threading.Thread(target=self._watch_store, daemon=True).start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._left = DONE if error is None else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self._wake.set()
        # A traceback must not wait for long: the others have a few beats to hear of the error.
        self._speaker.join(None if error is None else BEATS_TO_SUSPICION * self._beat_every_s)
        self._is_over.set()
        self._speaker.join(None if error is None else BEATS_TO_SUSPICION * self._beat_every_s)
        if not self._speaker.is_alive():
            del self._store

    def progress(self, step: int, phase: str) -> None:
        """Says where the main thread is. Cheap: call it at the beginning of every phase, or within a long one.

        Args:
            step: completed steps at the beginning of this one, also in the phases after its update.
            phase: one of `PHASES`.
        """
        self._place = (self._place[0] + 1, step, phase)

    @contextmanager
    def explains_lost_peers(self) -> Iterator[None]:
        """Around the collectives of a step: where one fails since a rank is dead, the line replaces the traceback.

        An error of another kind passes at once, and one of communication when all ranks turn out to be alive.
        """
        try:
            yield
        except RuntimeError as error:
            if self._world_size > 1 and _is_of_communication(error):
                self._is_suspicious = True
                # The threads end the process, if anything is wrong.
                time.sleep(2 * BEATS_TO_SUSPICION * self._beat_every_s)
                self._is_suspicious = False
            raise

    def _open_store(self) -> dist.Store:
        """Collective. The host knows all keys before anybody asks for one."""
        if self._rank > 0:
            return self._connect(self._broadcast(0), is_host=False)
        store = dist.HashStore() if self._world_size == 1 else self._connect(0, is_host=True)
        for key in [FINDING, *self._keys()]:
            store.set(key, "")
        if isinstance(store, dist.TCPStore):
            self._broadcast(store.port)
        return store

    def _connect(self, port: int, *, is_host: bool) -> dist.TCPStore:
        return dist.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            is_master=is_host,
            wait_for_workers=False,
            # The thread beside the speaker is to notice first.
            timeout=timedelta(seconds=2 * self._dead_after_s),
        )

    def _keys(self) -> list[str]:
        return [f"rank{rank}" for rank in range(self._world_size)]

    def _speak(self) -> None:
        """Speaks and listens until this rank has left, or until something is found that ends it."""
        said = ""
        try:
            while not self._is_over.is_set():
                said = self._left
                agreed = self._exchange()
                if said and (self._rank > 0 or self._peers.have_left(besides=[0])):
                    return
                if said in ("", DONE):
                    self._judge(agreed)
                # The host only waits for the others' farewells now, and they may come at any moment.
                if self._wake.wait(min(FAREWELL_S, self._beat_every_s) if said else self._beat_every_s):
                    self._wake.clear()
        except RuntimeError:
            # The store's host is gone; who has said that it leaves need not care.
            if not said:
                self._end(self._peers.silence([0], "its store is closed"))

    def _exchange(self, *, has_heard: bool = False) -> Finding | None:
        """Says how this rank is, hears how the others are; returns what has been found by any of them."""
        moves, step, phase = self._place
        self._me = replace(self._me, beat=self._me.beat + 1, moves=moves, step=step, phase=phase,
                           left=self._left, has_heard=has_heard)  # fmt: skip
        self._store.set(self._keys()[self._rank], self._me.dump())
        found, *words = self._store.multi_get([FINDING, *self._keys()])
        self._num_answers += 1
        self._peers.hear(words, self._clock.tick())
        return Finding.load(found) if found else None

    def _judge(self, agreed: Finding | None) -> None:
        """Ends this rank if anything has been found. The first to find something speaks for all."""
        found = agreed or self._peers.finding(self._clock.now, self._patience_s(), self._hang_after_s)
        if found is None:
            return
        if agreed is None:
            found = Finding.load(self._store.compare_set(FINDING, "", found.dump()))
        with suppress(RuntimeError):
            self._exchange(has_heard=True)
        if self._rank == 0:
            self._keep_store_open(besides=[0] if found.is_hang else [0, *found.ranks])
        self._end(found)

    def _keep_store_open(self, besides: list[int]) -> None:
        """Waits until the others know what the host knows."""
        deadline = self._clock.now + self._dead_after_s
        while self._clock.now < deadline and not self._peers.have_left(besides, or_heard=True):
            time.sleep(self._beat_every_s / 4)
            self._exchange(has_heard=True)

    def _watch_store(self) -> None:
        """Beside the speaker, which a stopped host keeps waiting in its call."""
        clock, num_answers, answered_at = AwakeClock(2 * self._beat_every_s), 0, 0.0
        while not self._is_over.wait(self._beat_every_s):
            now = clock.tick()
            if num_answers != self._num_answers:
                num_answers, answered_at = self._num_answers, now
            elif now - answered_at > self._patience_s():
                self._end(self._peers.silence([0], f"its store has not answered for {now - answered_at:.1f} s"))

    def _patience_s(self) -> float:
        return BEATS_TO_SUSPICION * self._beat_every_s if self._is_suspicious else self._dead_after_s

    def _end(self, found: Finding) -> None:
        """Ends the process, unless it is ending by an error of its own."""
        if self._left not in ("", DONE):
            return
        # Never released: of two threads only the first speaks.
        self._ending.acquire()
        if self._rank in found.ranks:
            faulthandler.dump_traceback(file=2, all_threads=True)
        line = f"watchdog: {found.line}; rank {self._rank} ends with status {found.status}"
        os.write(2, f"\n{line}\n".encode())
        _within(LAST_WORDS_S, self._last_words, found, line)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(found.status)

    def _last_words(self, found: Finding, line: str) -> None:
        if self._rank == min(set(range(self._world_size)) - set(found.ranks), default=0):
            self._report(line)
        sys.stdout.flush()


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl"))


def _within(limit_s: float, function: Callable[..., None], *arguments: object) -> None:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(limit_s)

"""What a rank says of itself, and what follows from what all have said. Knows no network, thread or clock."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

LOST_STATUS = 76
"""Exit status: another rank died or hangs; start me again."""
FAILED_STATUS = 1
"""Exit status: another rank ended with an error; read its traceback before you start again."""
PHASES = ("start", "data", "step", "sample", "checkpoint", "end")
"""What a rank can be doing, in the order within one step."""
DONE = "done"
NUM_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One rank, as it last was."""

    host: str
    pid: int
    beat: int = 0
    """Counts the words of this rank: while it grows, the process lives."""
    moves: int = 0
    """Counts the phases that the main thread has begun: while it grows, the rank works."""
    step: int = 0
    """Step in work: completed steps at its beginning."""
    phase: str = PHASES[0]
    left: str = ""
    """Empty inside the loop, `DONE` after it, or the error that ended it."""
    has_heard: bool = False
    """Whether the rank knows the finding that ends it."""

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Finding:
    """Ranks that keep the others from going on, and what to say about it."""

    ranks: list[int]
    line: str
    status: int
    is_hang: bool = False

    @staticmethod
    def load(text: str | bytes) -> "Finding":
        """From JSON."""
        return Finding(**json.loads(text))

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


class Peers:
    """All ranks, as one of them has heard them. Times are in seconds of the listener's own clock."""

    def __init__(self, world_size: int, now: float) -> None:
        self._last: list[Heartbeat | None] = [None] * world_size
        self._heard_at = [now] * world_size
        self._moved_at = now

    def hear(self, words: Sequence[str | bytes], now: float) -> None:
        """Takes in the newest word of every rank, in order of ranks; empty of a rank that has not spoken."""
        for rank, word in enumerate(words):
            if not word:
                continue
            before, heartbeat = self._last[rank], Heartbeat(**json.loads(word))
            if before is None or heartbeat.beat != before.beat:
                self._heard_at[rank] = now
            if before is None or heartbeat.moves != before.moves:
                self._moved_at = now
            self._last[rank] = heartbeat

    def have_left(self, besides: Sequence[int], *, or_heard: bool = False) -> bool:
        """Whether all ranks besides some have left the loop, or know the finding that ends them."""
        others = [last for rank, last in enumerate(self._last) if rank not in besides]
        return all(last and (bool(last.left) or (or_heard and last.has_heard)) for last in others)

    def finding(self, now: float, dead_after_s: float, hang_after_s: float) -> Finding | None:
        """Who is dead or has failed; where nobody, who hangs; None while all is well. `hang_after_s=0`: never."""
        silent_s = {rank: now - self._heard_at[rank] for rank in self._inside()}
        longest_s = max(silent_s.values(), default=0.0)
        if longest_s > dead_after_s:
            # The ranks of a lost node do not fall silent in the same instant.
            silent = [rank for rank, seconds in silent_s.items() if seconds > longest_s / 2]
            return self.silence(silent, f"no word for {longest_s:.1f} s")
        if hang_after_s and now - self._moved_at > hang_after_s and (behind := self._furthest_behind()):
            line = f"no rank has moved for {now - self._moved_at:.0f} s, furthest behind: {self._name(behind)}"
            return Finding(behind, line, LOST_STATUS, is_hang=True)
        return None

    def silence(self, ranks: list[int], sign: str) -> Finding:
        """What the silence of some ranks means, and by which sign it was seen."""
        if failed := [rank for rank in ranks if (last := self._last[rank]) and last.left]:
            return Finding(failed, f"failed: {self._name(failed)}", FAILED_STATUS)
        return Finding(ranks, f"dead or stopped, {sign}: {self._name(ranks)}", LOST_STATUS)

    def _inside(self) -> list[int]:
        return [rank for rank, last in enumerate(self._last) if last is None or last.left != DONE]

    def _furthest_behind(self) -> list[int]:
        places = {r: (last.step, PHASES.index(last.phase)) for r in self._inside() if (last := self._last[r])}
        return [rank for rank, place in places.items() if place == min(places.values())]

    def _name(self, ranks: list[int]) -> str:
        if 1 < len(ranks) == len(self._last) and (last := self._last[0]):
            return f"all {len(ranks)} ranks (step {last.step}, phase {last.phase})"
        more = f", and {len(ranks) - NUM_NAMED} more" if len(ranks) > NUM_NAMED else ""
        return ", ".join(self._name_one(rank) for rank in ranks[:NUM_NAMED]) + more

    def _name_one(self, rank: int) -> str:
        last = self._last[rank]
        if last is None:
            return f"rank {rank} (never heard of)"
        error = f": {last.left}" if last.left else ""
        return f"rank {rank} (host {last.host}, pid {last.pid}, step {last.step}, phase {last.phase}){error}"

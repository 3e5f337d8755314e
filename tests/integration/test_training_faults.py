"""Training whose ranks are killed at random moments, again and again, ends to the bit as training left in peace.

`MAGVIT_NUM_KILLS` says how often: 16 by default, 100 under `make faults`, which also shows the table.
"""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from magvit_scale.training.heartbeat import LOST_STATUS
from magvit_scale.training.retention import latest
from tests.integration.alike import assert_ends_alike, timeless
from tests.integration.nursery import Nursery, World, processes_of
from tests.integration.tiny_runs import ZERO, TinyRuns

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
PROGRAMS = ("vqgan", "commit")
NUM_KILLS_EACH = -(-int(os.environ.get("MAGVIT_NUM_KILLS", "16")) // (len(PROGRAMS) * len(ZERO)))
KINDS = ("rank", "run", "rank in a save", "run in a save")
DEAD_AFTER_S = 3
WORKERS_END_IN_S = 30.0
"""torch's loader workers look for their parent every five seconds."""


@dataclass
class Tally:
    """What happened to one program at one ZeRO stage."""

    program: str
    stage: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    starts: int = 0
    kept: int = 0
    redone: int = 0
    alarms: int = 0
    rounds: int = 0

    @property
    def accumulation(self) -> int:
        return 1 + self.stage % 2

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())

    def next_kind(self) -> str:
        # So that few kills, too, are of all kinds at both programs.
        return KINDS[(self.num_kills + NUM_KILLS_EACH * self.stage) % len(KINDS)]

    def cells(self) -> list[str]:
        figures = [*self.kills.values(), self.starts, self.kept, self.redone, self.alarms]
        return [str(self.stage), self.program, str(self.accumulation), *map(str, figures), f"{self.rounds} runs equal"]


HEADINGS = ["ZeRO", "model", "accumulation", *(f"kills of a {kind}" for kind in KINDS), "starts", "steps kept",
            "steps redone", "false alarms", "result"]  # fmt: skip


class Struck:
    """The runs of one program under kills."""

    def __init__(self, nursery: Nursery, runs: TinyRuns, folder: Path, program: str) -> None:
        self.nursery, self.runs, self.folder, self.program = nursery, runs, folder, program
        self.draw = random.Random(f"{program} {NUM_KILLS_EACH}")

    def tallies(self) -> list[Tally]:
        return [self.strike(Tally(self.program, stage)) for stage in ZERO]

    def strike(self, tally: Tally) -> Tally:
        """Kills one run after the other until there were enough kills; each must end as the undisturbed one."""
        undisturbed = self.folder / f"{tally.program}{tally.stage}"
        moments = self.folder / f"moments_{undisturbed.name}"
        moments.mkdir()
        counting = {"cast": "tests.integration.strikes:count", "folder": str(moments)}
        self.nursery.succeed(self._arguments(tally, undisturbed), **counting)
        self.moments = [json.loads((moments / f"moments.{rank}.json").read_text()) for rank in range(2)]
        while tally.num_kills < NUM_KILLS_EACH:
            tally.rounds += 1
            run = undisturbed.with_name(f"{undisturbed.name}.{tally.rounds}")
            while not self._has_ended(tally, run):
                pass
            assert_ends_alike(run, undisturbed)
        return tally

    def _has_ended(self, tally: Tally, run: Path) -> bool:
        """Starts once, with a kill if there are not enough yet."""
        arguments, kind = self._arguments(tally, run), tally.next_kind()
        tally.starts += 1
        if tally.num_kills >= NUM_KILLS_EACH:
            self.nursery.succeed(arguments)
            return True
        struck, is_saving, is_whole = self.draw.randrange(2), "save" in kind, "run" in kind
        spell = {"struck": struck, "only_saving": is_saving, "whole_run": is_whole,
                 "moment": self.draw.randrange(self.moments[struck][is_saving][is_whole])}  # fmt: skip
        world, statuses = self.nursery.run(arguments, cast="tests.integration.strikes:kill", **spell)
        if -signal.SIGKILL in statuses:
            tally.kills[kind] += 1
            kept, lost = _num_kept_and_lost_steps(run)
            tally.kept, tally.redone = tally.kept + kept, tally.redone + lost
            _check_end(world, statuses, struck, is_whole)
        elif statuses != [0, 0]:
            assert set(statuses) <= {0, LOST_STATUS}, f"{statuses}\n{world.describe()}"
            tally.alarms += 1
        return statuses == [0, 0]

    def _arguments(self, tally: Tally, run: Path) -> list[str]:
        return [*self.runs.of(tally.program, run, tally.stage, tally.accumulation), f"run.dead_after_s={DEAD_AFTER_S}"]


def _check_end(world: World, statuses: Sequence[int], struck: int, is_whole: bool) -> None:
    """A killed rank's peer ends by itself, with one line that names the dead one."""
    told = f"{statuses}, struck {struck}\n{world.describe()}"
    if is_whole:
        assert statuses == [-signal.SIGKILL] * 2, told
    else:
        assert (statuses[struck], statuses[1 - struck]) == (-signal.SIGKILL, LOST_STATUS), told
        lines = [line for line in world.said(1 - struck).splitlines() if line.startswith("watchdog: ")]
        assert len(lines) == 1, told
        # "(host ...", or "(never heard of)" of one that was struck before its first word.
        assert f": rank {struck} (" in lines[0], told
        assert lines[0].endswith(f"; rank {1 - struck} ends with status {LOST_STATUS}"), told
        assert "Traceback" not in world.said(1 - struck), told
    deadline = time.monotonic() + WORKERS_END_IN_S
    while left := processes_of(world):
        assert time.monotonic() < deadline, f"{left} are left\n{told}"
        time.sleep(0.1)


def _num_kept_and_lost_steps(run: Path) -> tuple[int, int]:
    """Of a killed run: those of its newest checkpoint, and those that were logged after it."""
    newest = latest(run / "checkpoints")
    kept = int(newest.name.removeprefix("step_")) if newest else 0
    logged = timeless(run, is_cut_short=True) if (run / "metrics.jsonl").exists() else []
    return kept, max([line["step"] for line in logged if line["step"] > kept], default=kept) - kept


def _table(tallies: Sequence[Tally]) -> str:
    rows = [HEADINGS, *(tally.cells() for tally in tallies)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def test_killed_training_ends_as_training_left_in_peace(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Both programs at once: while a rank waits for the watchdog, the other program has the processor.
    with Nursery(tmp_path / "nursery") as second, ThreadPoolExecutor(2) as pool:
        struck = [Struck(forks, tiny_runs, tmp_path, program)
                  for forks, program in zip((nursery, second), PROGRAMS, strict=True)]  # fmt: skip
        tallies = [tally for found in pool.map(Struck.tallies, struck) for tally in found]
    with capsys.disabled():
        print(f"\n{_table(tallies)}")  # noqa: T201
    assert sum(tally.num_kills for tally in tallies) == NUM_KILLS_EACH * len(tallies)
    assert all(sum(tally.kills[kind] for tally in tallies) >= 2 for kind in KINDS)
    assert sum(tally.kept for tally in tallies) > 0, "no kill came after a checkpoint"

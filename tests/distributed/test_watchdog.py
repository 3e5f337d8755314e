"""A rank dies, stops, sleeps or fails: how the others end, and what they say."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.launching import REPOSITORY
from tests.distributed.watched import DEAD_AFTER_S, FATAL_STEP, WORLDS, fail, kill, sleep, stop

pytestmark = pytest.mark.distributed
UNHARMED = ("well", "failed_together")
STRUCK = sorted(set(WORLDS) - {*UNHARMED, "complaining_1"})
STATUS = {kill: 76, stop: 76, sleep: 76, fail: 1}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the logs, statuses and places of all worlds, which have ended."""
    folder = tmp_path_factory.mktemp("watched")
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.watched", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=240)
    return folder


def statuses(folder: Path, name: str) -> dict[int, int]:
    found = json.loads((folder / f"{name}.statuses.json").read_text())
    return {int(rank): status for rank, status in found.items()}


def errors(folder: Path, name: str, rank: int) -> str:
    return (folder / f"{name}.rank{rank}.err").read_text()


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("watchdog: ")]


def places(folder: Path, name: str) -> list[dict[str, int]]:
    return [json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in range(WORLDS[name][0])]


@pytest.mark.parametrize("name", STRUCK)
def test_the_others_end_by_themselves_with_a_status_that_says_whether_to_start_again(worlds: Path, name: str) -> None:
    world_size, unlucky, _, misfortune, _ = WORLDS[name]
    own = {kill: -9, fail: 1, sleep: 76}.get(misfortune)
    expected = {rank: own if rank in unlucky else STATUS[misfortune] for rank in range(world_size)}
    assert statuses(worlds, name) == {rank: status for rank, status in expected.items() if status is not None}


@pytest.mark.parametrize("name", STRUCK)
def test_each_says_one_line_that_names_the_rank_its_process_and_its_place(worlds: Path, name: str) -> None:
    world_size, unlucky, phase, _, _ = WORLDS[name]
    named = [f"rank {rank} (host {os.uname().nodename}, pid {places(worlds, name)[rank]['pid']}, step {FATAL_STEP}, "
             f"phase {phase})" for rank in unlucky]  # fmt: skip
    if len(unlucky) == world_size > 1:
        named = [f"all {world_size} ranks (step {FATAL_STEP}, phase {phase})"]
    for rank in sorted(set(range(world_size)) - set(unlucky)):
        (line,) = lines(errors(worlds, name, rank))
        assert f": {', '.join(named)}" in line
        assert re.findall(r"rank (\d+)", line) == [*re.findall(r"rank (\d+)", " ".join(named)), str(rank)]
        assert "Traceback" not in errors(worlds, name, rank)


@pytest.mark.parametrize("name", STRUCK)
def test_the_log_of_the_run_has_the_line_once(worlds: Path, name: str) -> None:
    assert len(lines((worlds / f"{name}.log").read_text())) == 1


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_no_process_and_no_port_is_left(worlds: Path, name: str) -> None:
    found = places(worlds, name)
    for pid in [place[kind] for place in found for kind in ("pid", "worker") if kind in place]:
        assert has_ended(pid), f"process {pid} is left"
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & {place["port"] for place in found}


def has_ended(pid: int) -> bool:
    """Within some seconds: whoever inherits an orphan is not always quick to collect it."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_collective_that_notices_shortens_the_wait(worlds: Path) -> None:
    seconds = {name: float(re.findall(r"no word for ([\d.]+) s", lines(errors(worlds, name, 0))[0])[0])
               for name in ("killed_1", "killed_1_unnoticed")}  # fmt: skip
    assert seconds["killed_1"] < DEAD_AFTER_S <= seconds["killed_1_unnoticed"]


def test_a_hung_rank_shows_where_it_hangs(worlds: Path) -> None:
    assert "in sleep" in errors(worlds, "sleeping_1", 1)
    assert "in sleep" not in errors(worlds, "sleeping_1", 0)


def test_an_error_keeps_its_traceback_and_the_others_quote_it(worlds: Path) -> None:
    for name, rank in (("failed_0", 0), ("failed_1", 1)):
        assert "ValueError: a defect\nof two lines" in errors(worlds, name, rank)
        assert "ValueError: a defect of two lines; rank 2" in lines(errors(worlds, name, 2))[0]


def test_an_error_of_communication_among_living_ranks_is_not_explained_away(worlds: Path) -> None:
    assert statuses(worlds, "complaining_1") == {0: 1, 1: 1, 2: 1}
    assert "DistNetworkError: a network that is not down" in errors(worlds, "complaining_1", 1)
    assert not lines(errors(worlds, "complaining_1", 1))


def test_ranks_that_fail_together_all_keep_their_tracebacks(worlds: Path) -> None:
    assert statuses(worlds, "failed_together") == {0: 1, 1: 1, 2: 1}
    for rank in range(3):
        assert "ValueError: a defect" in errors(worlds, "failed_together", rank)
        assert not lines(errors(worlds, "failed_together", rank))


def test_nothing_is_said_when_all_is_well_however_long_a_phase_lasts_below_the_limit(worlds: Path) -> None:
    assert statuses(worlds, "well") == {0: 0, 1: 0, 2: 0}
    assert [errors(worlds, "well", rank) for rank in range(3)] == ["", "", ""]
    assert not (worlds / "well.log").exists()

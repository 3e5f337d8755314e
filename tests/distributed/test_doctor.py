"""`magvit doctor` on two real ranks: all well; one lies, is blind, never starts, is stuck, or finds no rank 0."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.job import free_port
from tests.distributed.launching import REPOSITORY

pytestmark = pytest.mark.distributed
HOST = socket.gethostname()
TIMEOUT_S = 120
DOCTOR = "from magvit_scale import cli; import sys; cli.main(['doctor', *sys.argv[1:]])"
LIES = """
import os
from magvit_scale.training import distributed
honest_sum = distributed.sum_over_ranks
distributed.sum_over_ranks = lambda own: honest_sum(own + (os.environ["RANK"] == "1"))
"""
"""Rank 1 puts 3 where 2 is expected of it."""
SHORT_PATIENCE_S = 3
LONG_PATIENCE_S = 15
"""Longer than two ranks differ in coming, on a busy machine."""


class World:
    """Two ranks, each with a key of its own; those left out never start."""

    def __init__(self, reports: Path, keys: dict[int, str], patience_s: float, program: str = DOCTOR) -> None:
        self.reports, port = reports, str(free_port())
        shared = [program, f"reports={reports}", f"patience_s={patience_s}"]
        self.processes = {rank: _start(rank, port, [*shared, key]) for rank, key in keys.items()}
        self.statuses: dict[int, int] = {}
        self.outputs: dict[int, str] = {}
        self.errors: dict[int, str] = {}

    def wait(self, stuck: Collection[int] = ()) -> None:
        for rank in self.processes.keys() - stuck:
            process = self.processes[rank]
            self.outputs[rank], self.errors[rank] = process.communicate(timeout=TIMEOUT_S)
            self.statuses[rank] = process.returncode

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def report(self, rank: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.reports / f"rank{rank:05d}.json").read_text())
        return content


def _start(rank: int, port: str, arguments: list[str]) -> "subprocess.Popen[str]":
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
    environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    """All at once, ended."""
    root = tmp_path_factory.mktemp("doctor")
    for name in ("shared", "other", "stuck_shards"):
        (root / name).mkdir()
    # Whoever opens it waits for a writer, as for a file server that is gone.
    os.mkfifo(root / "stuck_shards/dataset.json")
    shared, other, stuck = f"folder={root}/shared", f"folder={root}/other", f"shards={root}/stuck_shards"
    found = {
        "well": World(root / "well", {0: shared, 1: shared}, TIMEOUT_S),
        "blind": World(root / "blind", {0: shared, 1: other}, TIMEOUT_S),
        "lying": World(root / "lying", {0: shared, 1: shared}, TIMEOUT_S, LIES + DOCTOR),
        "absent": World(root / "absent", {0: shared}, SHORT_PATIENCE_S),
        "hostless": World(root / "hostless", {1: shared}, SHORT_PATIENCE_S),
        "stuck": World(root / "stuck", {0: "num_workers=0", 1: stuck}, LONG_PATIENCE_S),
    }
    try:
        for name, world in found.items():
            world.wait(stuck=[1] if name == "stuck" else [])
        yield found
    finally:
        for world in found.values():
            world.end()
    assert [*Path(root, "shared").iterdir(), *Path(root, "other").iterdir()] == []


def test_two_ranks_that_are_well(worlds: dict[str, World]) -> None:
    world = worlds["well"]
    assert world.statuses == {0: 0, 1: 0}
    _, heads, *rows, verdict = world.outputs[0].splitlines()
    assert heads.split() == ["rank", "host", "device", "memory", "bf16", "clock", "all-reduce", "rate"]
    assert [row.split()[:2] for row in rows] == [["0", HOST], ["1", HOST]]
    assert (verdict, world.outputs[1]) == ("all well", "")


def test_both_have_summed_and_compared_clocks(worlds: dict[str, World]) -> None:
    reports = [worlds["well"].report(rank) for rank in range(2)]
    for rank, report in enumerate(reports):
        assert (report["rank"], report["problems"], report["is_final"]) == (rank, [], True)
        seconds = report["all_reduce_ms"] / 1e3
        assert report["all_reduce_gb_per_s"] == pytest.approx(4 * (1 << 20) / seconds / 1e9)
    # Of one host, on whatever busy machine: what one rank is ahead of itself, it is not; of the other, not by much.
    assert reports[0]["clock_offset_ms"] == 0
    assert abs(reports[1]["clock_offset_ms"]) < 60_000


def test_a_wrong_sum_fails_both(worlds: dict[str, World]) -> None:
    world = worlds["lying"]
    assert world.statuses == {0: 1, 1: 1}
    *_, first, second, verdict = world.outputs[0].splitlines()
    for rank, problem in enumerate((first, second)):
        found = f"{HOST} (rank {rank}): all-reduce gave 1048576 wrong sums of 1048576, expected 3; "
        assert problem.startswith(found)
    assert verdict == "2 problems, on 2 of 2 ranks"


def test_a_rank_that_does_not_see_the_folder_fails_both_and_is_named(worlds: dict[str, World]) -> None:
    world = worlds["blind"]
    assert world.statuses == {0: 1, 1: 1}
    *_, problem, verdict = world.outputs[0].splitlines()
    folder = world.reports.parent / "other"
    assert problem.startswith(f"{HOST} (rank 1): does not see in {folder} what rank 0 has just written there: ")
    assert verdict == "1 problem, on 1 of 2 ranks"
    assert [len(world.report(rank)["problems"]) for rank in range(2)] == [0, 1]


def test_a_rank_that_never_starts_is_named_and_not_waited_for(worlds: dict[str, World]) -> None:
    world = worlds["absent"]
    assert world.statuses == {0: 1}
    *_, warning, problem, verdict = world.outputs[0].splitlines()
    assert warning.startswith(f"warning: {HOST} (rank 0): all-reduce and clocks were not tried: ")
    expected = f"rank 1: did not come within {SHORT_PATIENCE_S} s and has left no report in {world.reports}; "
    assert problem.startswith(expected)
    assert verdict == "1 problem, on 1 of 2 ranks"
    assert [path.name for path in world.reports.iterdir()] == ["rank00000.json"]


def test_a_rank_without_rank_0_says_so_and_leaves_its_report(worlds: dict[str, World]) -> None:
    world = worlds["hostless"]
    assert world.statuses == {1: 1}
    (problem,) = world.report(1)["problems"]
    assert problem.startswith("cannot reach rank 0 at 127.0.0.1:")
    assert f"magvit doctor: {HOST} (rank 1): {problem}\n" in world.errors[1]
    assert "Traceback" not in world.errors[1]


def test_a_rank_that_gets_stuck_is_named_and_not_waited_for(worlds: dict[str, World]) -> None:
    world = worlds["stuck"]
    assert world.statuses == {0: 1}
    *_, problem, verdict = world.outputs[0].splitlines()
    assert problem.startswith(f"{HOST} (rank 1): did not finish in {LONG_PATIENCE_S} s; ")
    assert verdict == "1 problem, on 1 of 2 ranks"
    assert [world.report(rank)["is_final"] for rank in range(2)] == [True, False]

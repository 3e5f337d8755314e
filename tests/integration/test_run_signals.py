"""SIGTERM, USR1 and USR2 to a run of two ranks: all save at one step and end with 75; the same command continues."""

from collections.abc import Callable
from pathlib import Path

import pytest

from magvit_scale.training.retention import latest
from magvit_scale.training.signals import STOPPED_STATUS
from tests.integration.alike import assert_ends_alike, trained
from tests.integration.nursery import Nursery, processes_of
from tests.integration.tiny_runs import TinyRuns

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
# Steps completed when the signal comes; step 3 is no step of a checkpoint.
SIGNALLED_AT, SAVED_AT = 2, 3
STAGES = {"vqgan": 1, "commit": 3}


@pytest.fixture(scope="module")
def undisturbed(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run of a program that nobody asks to stop."""
    folder, done = tmp_path_factory.mktemp("undisturbed"), set[str]()

    def run(program: str) -> Path:
        if program not in done:
            nursery.succeed(tiny_runs.of(program, folder / program, STAGES[program]))
            done.add(program)
        return folder / program

    return run


@pytest.mark.parametrize(
    ("program", "receivers", "signals"),
    [
        ("vqgan", [0, 1], {"first": "SIGTERM", "second": "SIGUSR2"}),
        ("vqgan", [1], {"first": "SIGUSR2"}),
        ("commit", [0], {"first": "SIGUSR1"}),
        ("commit", [1], {"first": "SIGTERM", "second": "SIGTERM"}),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_ends_and_continues(
    nursery: Nursery,
    tiny_runs: TinyRuns,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    program: str,
    receivers: list[int],
    signals: dict[str, str],
) -> None:
    arguments = tiny_runs.of(program, tmp_path / "run", STAGES[program])
    spell = {"receivers": receivers, "step": SIGNALLED_AT, **signals}
    world, statuses = nursery.run(arguments, cast="tests.integration.summons:signal_at", **spell)
    assert statuses == [STOPPED_STATUS] * 2, world.describe()
    assert processes_of(world) == []
    assert [line["step"] for line in trained(tmp_path / "run")] == [1, 2, 3]
    assert latest(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints" / f"step_{SAVED_AT:08d}"
    name = signals["first"] if 0 in receivers else "a signal to another rank"
    assert f"stopped by {name} after step {SAVED_AT}; the same command continues" in world.said(0)
    assert not (tmp_path / "run" / "export").exists()
    nursery.succeed(arguments)
    assert_ends_alike(tmp_path / "run", undisturbed(program))

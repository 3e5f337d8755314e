"""Which folders count as checkpoints, and which of them stay."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import RunConfig
from magvit_scale.training.retention import Retention, is_complete, latest, newest_first, prune

FILES = {"rank_00000.safetensors": "12345678", "replicated.safetensors": "1234"}


def write(folder: Path, step: int, **metrics: float) -> Path:
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    texts = FILES | {"state.json": json.dumps({"step": step, "metrics": metrics})}
    for name, text in texts.items():
        (path / name).write_text(text)
    (path / "COMPLETE").write_text(json.dumps({"files": {name: len(text) for name, text in texts.items()}}))
    return path


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILS = pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "COMPLETE").unlink(),
        lambda folder: truncate(folder / "rank_00000.safetensors"),
        lambda folder: truncate(folder / "replicated.safetensors"),
        lambda folder: (folder / "rank_00000.safetensors").unlink(),
        lambda folder: (folder / "rank_00000.safetensors").open("ab").write(b"0"),
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: (folder / "COMPLETE").write_text(""),
        lambda folder: (folder / "COMPLETE").write_text('{"step": 3, "fi'),
        lambda folder: (folder / "COMPLETE").write_text("null"),
        lambda folder: (folder / "COMPLETE").write_text("{}"),
    ],
    ids=["no COMPLETE", "truncated rank", "truncated replicated", "missing rank", "too long", "empty folder",
         "empty list", "half a list", "null", "no list"],
)  # fmt: skip


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path / "missing") is None
    assert latest(tmp_path) is None


@SPOILS
def test_a_broken_newest_checkpoint_falls_back_although_latest_points_at_it(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    paths = [write(tmp_path, step) for step in (1, 2, 3)]
    (tmp_path / "latest").write_text("step_00000003")
    spoil(paths[2])
    assert latest(tmp_path) == paths[1]
    assert newest_first(tmp_path) == paths[::-1]
    for path in paths[:2]:
        spoil(path)
    assert latest(tmp_path) is None


@pytest.mark.parametrize("pointer", [None, "", "step_00000099", "../../elsewhere"])
def test_the_pointer_can_be_lost_or_nonsense(tmp_path: Path, pointer: str | None) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    if pointer is not None:
        (tmp_path / "latest").write_text(pointer)
    assert latest(tmp_path) == tmp_path / "step_00000002"


def test_a_tmp_folder_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000002.tmp")
    assert latest(tmp_path) == tmp_path / "step_00000001"
    prune(tmp_path, Retention(newest=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002.tmp"]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(newest=1), [60]),
        (Retention(newest=2), [50, 60]),
        (Retention(newest=9), [10, 20, 30, 40, 50, 60]),
        (Retention(newest=1, every=20), [20, 40, 60]),
        (Retention(newest=1, every=30), [30, 60]),
        (Retention(newest=1, every=25), [50, 60]),
        (Retention(newest=1, best_metric="loss"), [20, 60]),
        (Retention(newest=1, best_metric="loss", best_is="highest"), [30, 60]),
        (Retention(newest=1, best_metric="never logged"), [60]),
        (Retention(newest=1, every=40, best_metric="loss"), [20, 40, 60]),
    ],
)
def test_newest_milestones_and_the_best_stay(tmp_path: Path, retention: Retention, kept: list[int]) -> None:
    for step, loss in {10: 3.0, 20: 1.0, 30: 9.0, 40: 4.0, 50: 2.0, 60: 5.0}.items():
        write(tmp_path, step, loss=loss)
    prune(tmp_path, retention)
    assert steps(tmp_path) == kept


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_of_equally_good_ones_the_newest_stays(tmp_path: Path, best_is: str) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, loss=1.0)
    write(tmp_path, 40, loss=1.5 if best_is == "lowest" else 0.5)
    prune(tmp_path, Retention(newest=1, best_metric="loss", best_is=best_is))
    assert steps(tmp_path) == [30, 40]


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_a_value_that_is_missing_or_no_number_is_never_the_best(tmp_path: Path, best_is: str) -> None:
    write(tmp_path, 10, loss=float("nan"))
    write(tmp_path, 20, other=0.0)
    write(tmp_path, 30, loss=7.0)
    write(tmp_path, 40, loss=float("nan"))
    write(tmp_path, 50)
    prune(tmp_path, Retention(newest=1, best_metric="loss", best_is=best_is))
    assert steps(tmp_path) == [30, 50]


def test_a_checkpoint_that_diverged_is_never_the_highest(tmp_path: Path) -> None:
    write(tmp_path, 10, loss=float("inf"))
    write(tmp_path, 20, loss=7.0)
    write(tmp_path, 30, loss=5.0)
    prune(tmp_path, Retention(newest=1, best_metric="loss", best_is="highest"))
    assert steps(tmp_path) == [20, 30]


@SPOILS
def test_incomplete_ones_count_for_nothing_and_go(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    for step, loss in {10: 2.0, 20: 3.0, 30: 1.0, 40: 4.0}.items():
        path = write(tmp_path, step, loss=loss)
        if step in (30, 40):
            spoil(path)
    prune(tmp_path, Retention(newest=1, every=30, best_metric="loss"))
    assert steps(tmp_path) == [10, 20]
    assert is_complete(tmp_path / "step_00000020")


def test_a_runs_configuration_says_which() -> None:
    run = RunConfig(folder="", steps=1, global_batch_size=1, keep_checkpoints=3, keep_every=500,
                    keep_best="validation/CG", best_is="highest")  # fmt: skip
    assert Retention.of(run) == Retention(3, 500, "validation/CG", "highest")
    assert Retention.of(RunConfig(folder="", steps=1, global_batch_size=1)) == Retention(2, 0, None, "lowest")

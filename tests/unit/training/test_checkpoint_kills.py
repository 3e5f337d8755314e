"""What stands on the disk after every possible kill of a save, and what `latest` makes of it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from magvit_scale.training.checkpoint import load, step_of
from magvit_scale.training.retention import latest
from tests.unit.training.conftest import assert_equal, build_state, content, save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_steps(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save(folder, step, build_state(step), keep)


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    save_steps(tmp_path, 2)
    loaded, expected = build_state(9), build_state(2)
    found = latest(tmp_path)
    assert found == tmp_path / "step_00000002"
    load(found, loaded)
    assert_equal(content(loaded), content(expected))


def test_a_left_over_tmp_folder_is_no_checkpoint_and_is_replaced(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step_00000002", tmp_path / "step_00000003.tmp")  # complete, but never renamed
    (tmp_path / "step_00000003.tmp" / "rank_00009.safetensors").write_bytes(b"of a larger world")
    assert latest(tmp_path) == tmp_path / "step_00000002"
    save_steps(tmp_path, 3)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000002", "step_00000003"]
    assert "rank_00009.safetensors" not in names(tmp_path / "step_00000003")
    assert latest(tmp_path) == tmp_path / "step_00000003"


class Killed(BaseException):
    """Nothing in the package may catch it."""


class Killer:
    """Counts what a save does to the disk, and ends it in the middle of the chosen act."""

    def __init__(self, at: int) -> None:
        self.at, self.acts = at, 0

    def wrap(self, act: Callable[..., Any], half: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any, **options: Any) -> Any:
            self.acts += 1
            if self.acts == self.at:
                half(*arguments)
                raise Killed
            return act(*arguments, **options)

        return acting


def _half_a_file(tensors: Any, path: str | Path, *_: Any) -> None:
    Path(path).write_bytes(b"half")


def _half_a_removal(folder: Path, *_: Any) -> None:
    for path in sorted(Path(folder).glob("rank*")):
        path.unlink()


def _nothing(*_: Any) -> None:
    pass


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killer]:
    killer = Killer(number)
    with monkeypatch.context() as patches:
        write = killer.wrap(safetensors.torch.serialize_file, _half_a_file)
        patches.setattr(safetensors.torch, "serialize_file", write)
        patches.setattr(os, "fsync", killer.wrap(os.fsync, _nothing))
        patches.setattr(shutil, "rmtree", killer.wrap(shutil.rmtree, _half_a_removal))
        patches.setattr(os, "rename", killer.wrap(os.rename, _nothing))
        patches.setattr(os, "replace", killer.wrap(os.replace, _nothing))
        patches.setattr(Path, "write_text", killer.wrap(Path.write_text, lambda path, text: path.touch()))
        yield killer


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_act_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    expected = {step: content(build_state(step)) for step in (1, 2, 3)}
    outcomes = []
    for number in range(1, 99):
        folder = tmp_path / str(number)
        save_steps(folder, 1, 2, keep=keep)
        with killed_at(number, monkeypatch) as killer:
            try:
                save(folder, 3, build_state(3), keep)
            except Killed:
                pass
            else:
                break
        found = latest(folder)
        assert found is not None, f"killed at act {killer.acts}"
        loaded = build_state(9)
        load(found, loaded)
        assert_equal(content(loaded), expected[step_of(found)])
        outcomes.append(step_of(found))
        save(folder, 3, build_state(3), keep)  # and the run that starts again makes it good
        assert latest(folder) == folder / "step_00000003"
        assert [name for name in names(folder) if name.endswith(".tmp")] == []
    assert len(outcomes) >= 10, "the acts of a save are no longer counted"
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}

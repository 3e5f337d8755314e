"""The checkpoint protocol: what stands on the disk after every possible kill, and what `latest` makes of it."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from magvit_scale.config import Refusal
from magvit_scale.training import checkpoint
from magvit_scale.training.checkpoint import latest, load, save, step_of
from tests.unit.training.conftest import assert_equal, build_state, content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_steps(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save(folder, step, build_state(step), keep)


def test_what_is_saved_comes_back_with_moments_counters_and_an_engine_that_never_stepped(tmp_path: Path) -> None:
    state = build_state(1)
    state.engines["generator"].train(3)
    save(tmp_path, 3, state, keep=1)
    assert names(tmp_path) == ["latest", "step_00000003"]
    assert names(tmp_path / "step_00000003") == ["COMPLETE", "rank_00000.safetensors", "replicated.safetensors"]
    assert (tmp_path / "latest").read_text() == "step_00000003"
    loaded = build_state(2)
    found = latest(tmp_path)
    assert found == tmp_path / "step_00000003"
    assert step_of(found) == 3
    load(found, loaded)
    assert_equal(content(loaded), content(state))
    assert loaded.engines["discriminator"].optimizer.state == {}
    for run in (state, loaded):  # and both go on in the same way
        run.engines["generator"].train(2)
        run.engines["discriminator"].train(1)
    assert_equal(content(loaded), content(state))


def test_two_ranks_write_each_tensor_once_and_one_rank_reads_them(tmp_path: Path) -> None:
    meeting = threading.Barrier(2)

    def wait() -> None:
        meeting.wait(timeout=20)

    states = [build_state(1, rank, 2, wait) for rank in range(2)]
    for state in states:
        state.engines["generator"].train(2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(save, tmp_path, 2, state, 1) for state in states]:
            done.result(timeout=20)
    folder = tmp_path / "step_00000002"
    assert names(folder)[1:3] == ["rank_00000.safetensors", "rank_00001.safetensors"]
    assert json.loads((folder / "COMPLETE").read_text()) == {
        "step": 2,
        "files": {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMPLETE"},
    }
    assert all((folder / f"rank_0000{rank}.safetensors").stat().st_size > 200 for rank in range(2))
    loaded = build_state(7)
    load(folder, loaded)
    assert_equal(content(loaded), content(states[0]))


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path / "missing") is None
    assert latest(tmp_path) is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "COMPLETE").unlink(),
        lambda folder: _truncate(folder / "rank_00000.safetensors"),
        lambda folder: _truncate(folder / "replicated.safetensors"),
        lambda folder: (folder / "rank_00000.safetensors").unlink(),
        lambda folder: (folder / "rank_00000.safetensors").open("ab").write(b"0"),
        lambda folder: [path.unlink() for path in folder.iterdir()],
    ],
    ids=["no COMPLETE", "truncated rank", "truncated replicated", "missing rank", "too long", "empty"],
)
def test_a_broken_newest_checkpoint_falls_back_although_latest_points_at_it(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    save_steps(tmp_path, 1, 2, 3)
    spoil(tmp_path / "step_00000003")
    assert (tmp_path / "latest").read_text() == "step_00000003"
    assert latest(tmp_path) == tmp_path / "step_00000002"
    spoil(tmp_path / "step_00000002")
    spoil(tmp_path / "step_00000001")
    assert latest(tmp_path) is None


@pytest.mark.parametrize("pointer", [None, "", "step_00000099", "../../elsewhere"])
def test_the_pointer_can_be_lost_or_nonsense(tmp_path: Path, pointer: str | None) -> None:
    save_steps(tmp_path, 1, 2)
    (tmp_path / "latest").unlink()
    if pointer is not None:
        (tmp_path / "latest").write_text(pointer)
    assert latest(tmp_path) == tmp_path / "step_00000002"


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    _truncate(tmp_path / "step_00000002" / "rank_00000.safetensors")
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


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 5, 10, 100, 1000, keep=2)
    assert names(tmp_path) == ["latest", "step_00000100", "step_00001000"]
    assert (tmp_path / "latest").read_text() == "step_00001000"


def test_a_checkpoint_of_a_smaller_model_is_refused_with_the_tensor(tmp_path: Path) -> None:
    save(tmp_path, 1, build_state(1, width=7), keep=1)
    with pytest.raises(Refusal, match=r"holds 21 of 24 elements of generator/master/0\.weight; it is of another"):
        load(tmp_path / "step_00000001", build_state(1, width=8))


@pytest.mark.parametrize("text", ["", '{"step": 3, "fi', "null", "{}"])
def test_a_damaged_list_makes_a_checkpoint_incomplete(tmp_path: Path, text: str) -> None:
    for step in (2, 3):
        save(tmp_path, step, build_state(step), 9)
    (tmp_path / "step_00000003" / "COMPLETE").write_text(text)
    assert latest(tmp_path) == tmp_path / "step_00000002"


def test_broken_checkpoints_are_not_kept_instead_of_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, build_state(step), 9)
    for step in (2, 3):
        (tmp_path / f"step_0000000{step}" / "COMPLETE").unlink()
    save(tmp_path, 2, build_state(2), keep=1)  # as a run does that fell back to step 1
    assert latest(tmp_path) == tmp_path / "step_00000002"


FULL_DISK = """
import resource, sys
from pathlib import Path
from magvit_scale.config import refusals_end_the_program
from magvit_scale.training.checkpoint import save
from tests.unit.training.conftest import build_state
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
with refusals_end_the_program("train-vqgan"):
    save(Path(sys.argv[1]), 2, build_state(2), 1)
"""


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, 1, build_state(1), 1)
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "step_00000002" in ended.stderr.splitlines()[-1]
    assert latest(tmp_path) == tmp_path / "step_00000001"


# ----------------------------------------------------------------------------------------------------------------------
# Killed at every single step of a save


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
        patches.setattr(checkpoint, "_fsync", killer.wrap(checkpoint._fsync, _nothing))
        patches.setattr(checkpoint.shutil, "rmtree", killer.wrap(shutil.rmtree, _half_a_removal))
        patches.setattr(checkpoint.os, "rename", killer.wrap(checkpoint.os.rename, _nothing))
        patches.setattr(checkpoint.os, "replace", killer.wrap(checkpoint.os.replace, _nothing))
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


def test_a_failing_rank_file_leaves_the_older_checkpoint_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 1)

    def full_disk(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "serialize_file", full_disk)
    with pytest.raises(OSError, match=r"step_00000002\.tmp/rank_00000\.safetensors: No space left"):
        save(tmp_path, 2, build_state(2), 1)
    assert latest(tmp_path) == tmp_path / "step_00000001"


def test_saving_does_not_change_what_is_saved(tmp_path: Path) -> None:
    state = build_state(1)
    state.engines["generator"].train(1)
    before = content(state)
    save(tmp_path, 1, state, keep=1)
    assert_equal(content(state), before)
    again = tmp_path / "again"
    save(again, 1, state, keep=1)
    for path in (again / "step_00000001").iterdir():
        assert path.read_bytes() == (tmp_path / "step_00000001" / path.name).read_bytes()


def test_a_seeded_state_is_drawn_alike() -> None:
    assert_equal(content(build_state(1)), content(build_state(1)))
    assert not torch.equal(content(build_state(1))["generator/0.weight"], content(build_state(2))["generator/0.weight"])

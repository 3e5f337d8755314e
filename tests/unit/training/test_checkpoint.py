"""What a checkpoint carries, who writes it, and when."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
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
from magvit_scale.training.checkpoint import TrainingState, Writer, about, load, step_of
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import latest
from tests.unit.training.conftest import (
    CONFIG,
    assert_equal,
    build_state,
    build_writer,
    content,
    engine_of,
    save,
    train,
)

PATIENCE_S = 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_with_moments_counters_and_an_engine_that_never_stepped(tmp_path: Path) -> None:
    state = build_state(1)
    train(engine_of(state, "generator"), 3)
    save(tmp_path, 3, state, keep=1)
    assert names(tmp_path) == ["latest", "step_00000003"]
    assert names(tmp_path / "step_00000003") == [
        "COMPLETE", "config.yaml", "rank_00000.safetensors", "replicated.safetensors", "state.json"
    ]  # fmt: skip
    assert (tmp_path / "latest").read_text() == "step_00000003"
    assert (tmp_path / "step_00000003" / "config.yaml").read_text() == CONFIG
    loaded = build_state(2)
    found = latest(tmp_path)
    assert found == tmp_path / "step_00000003"
    assert (step_of(found), about(found)["step"], about(found)["facts"]["generator"]["updates"]) == (3, 3, 3)
    load(found, loaded)
    assert_equal(content(loaded), content(state))
    assert engine_of(loaded, "discriminator").deepspeed.optimizer.state == {}
    for run in (state, loaded):  # and both go on in the same way
        train(engine_of(run, "generator"), 2)
        train(engine_of(run, "discriminator"), 1)
    assert_equal(content(loaded), content(state))


def test_a_trained_engine_is_set_back_with_its_moments(tmp_path: Path) -> None:
    state = build_state(1)
    before = content(state)
    save(tmp_path, 0, state)
    train(engine_of(state, "generator"), 2)
    load(tmp_path / "step_00000000", state)
    assert_equal(content(state), before)


@contextmanager
def two_ranks(folder: Path) -> Iterator[tuple[list[TrainingState], list[Writer]]]:
    meeting = threading.Barrier(2)

    def wait() -> None:
        meeting.wait(PATIENCE_S)

    ranks = [Ranks(rank, 2, torch.device("cpu")) for rank in range(2)]
    states = [build_state(1, one) for one in ranks]
    writers = [build_writer(folder, state, ranks=one, barrier=wait) for state, one in zip(states, ranks, strict=True)]
    yield states, writers
    for writer in writers:
        writer.close()


def begin(writers: list[Writer], step: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(writer.save, {"step": step}, CONFIG) for writer in writers]:
            done.result(timeout=PATIENCE_S)


def test_two_ranks_write_each_tensor_once_and_one_rank_reads_them(tmp_path: Path) -> None:
    with two_ranks(tmp_path) as (states, writers):
        for state in states:
            train(engine_of(state, "generator"), 2)
        begin(writers, 2)
        for writer in reversed(writers):
            writer.wait()
    folder = tmp_path / "step_00000002"
    assert names(folder)[2:4] == ["rank_00000.safetensors", "rank_00001.safetensors"]
    assert json.loads((folder / "COMPLETE").read_text()) == {
        "files": {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMPLETE"}
    }
    owned = [set(safetensors.torch.load_file(folder / f"rank_0000{rank}.safetensors")) for rank in range(2)]
    assert min(map(len, owned)) > 5
    assert not owned[0] & owned[1]
    alone = build_state(1)
    assert owned[0] | owned[1] == {
        f"{name}/{key}@{first}" for name, part in alone.partitioned.items() for key, first, _ in part.owned_slices()
    } | {f"generator/{kind}/{key}@0" for kind in ("exp_avg", "exp_avg_sq")
         for key, _ in engine_of(alone, "generator").module.named_parameters()}  # fmt: skip
    loaded = build_state(7)
    load(folder, loaded)
    expected = content(states[0]) | content(states[1])
    found = content(loaded)
    assert_equal({name: found[name] for name in expected}, expected)


def test_what_happens_after_save_returns_is_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    write = checkpoint.write_tensors

    def later(*arguments: Any) -> None:
        assert may_write.wait(PATIENCE_S)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_tensors", later)
    state = build_state(1)
    train(engine_of(state, "generator"), 1)
    expected = content(state)
    writer = build_writer(tmp_path, state)
    writer.save({"step": 1}, CONFIG)
    assert latest(tmp_path) is None
    train(engine_of(state, "generator"), 1)
    state.replicated["count"].value.fill_(99)
    may_write.set()
    writer.wait()
    loaded = build_state(2)
    load(tmp_path / "step_00000001", loaded)
    assert_equal(content(loaded), expected)


def test_a_second_save_waits_for_the_first(tmp_path: Path) -> None:
    state = build_state(1)
    writer = build_writer(tmp_path, state)
    for step in (1, 2, 3):
        writer.save({"step": step}, CONFIG)
    assert [name for name in names(tmp_path) if not name.endswith(".tmp")][:3] == [
        "latest", "step_00000001", "step_00000002"
    ]  # fmt: skip
    writer.wait()
    assert latest(tmp_path) == tmp_path / "step_00000003"
    writer.wait()  # with nothing to write


def delayed_second_rank(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Rank 1 writes its part when the event is set."""
    write, second = checkpoint.write_tensors, threading.Event()

    def slow(tensors: Any, path: Path) -> None:
        assert path.name != "rank_00001.safetensors" or second.wait(PATIENCE_S)
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    return second


def test_it_is_complete_only_once_every_rank_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = delayed_second_rank(monkeypatch)
    with two_ranks(tmp_path) as (_, writers):
        begin(writers, 5)
        aside = tmp_path / "step_00000005.tmp"
        assert writers[0]._writing is not None
        with pytest.raises(TimeoutError):
            writers[0]._writing.result(timeout=0.3)
        assert not (aside / "COMPLETE").exists()
        assert latest(tmp_path) is None
        second.set()
        writers[1].wait()
        writers[0].wait()
    assert latest(tmp_path) == tmp_path / "step_00000005"


def test_a_run_that_ends_by_an_error_still_completes_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = delayed_second_rank(monkeypatch)
    with two_ranks(tmp_path) as (_, writers):
        begin(writers, 5)
        threading.Timer(0.2, second.set).start()
        writers[0].close()
        assert latest(tmp_path) == tmp_path / "step_00000005"


def test_a_main_rank_whose_fellow_is_lost_can_leave(tmp_path: Path) -> None:
    """The thread waits for a file that never comes, and Python waits for every thread at its end."""
    with two_ranks(tmp_path) as (states, _):
        writer = build_writer(tmp_path, states[0], ranks=Ranks(0, 2, torch.device("cpu")))
        writer.save({"step": 1}, CONFIG)
        assert not writer.has_failed
        writer.close(patience_s=0.1)
        (thread,) = writer._pool._threads
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert latest(tmp_path) is None


def test_a_failing_rank_file_leaves_the_older_checkpoint_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, build_state(1))

    def full_disk(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "serialize_file", full_disk)
    writer = build_writer(tmp_path, build_state(2))
    writer.save({"step": 2}, CONFIG)
    assert writer._writing is not None
    writer._writing.exception(PATIENCE_S)
    assert writer.has_failed
    with pytest.raises(OSError, match=r"step_00000002\.tmp/rank_00000\.safetensors: No space left"):
        writer.wait()
    assert not writer.has_failed, "an error is told once"
    assert latest(tmp_path) == tmp_path / "step_00000001"


FULL_DISK = """
import resource, sys
from pathlib import Path
from magvit_scale.config import refusals_end_the_program
from tests.unit.training.conftest import build_state, save
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


def test_saving_does_not_change_what_is_saved(tmp_path: Path) -> None:
    state = build_state(1)
    train(engine_of(state, "generator"), 1)
    before = content(state)
    save(tmp_path, 1, state, keep=1)
    assert_equal(content(state), before)
    again = tmp_path / "again"
    save(again, 1, state, keep=1)
    for path in (again / "step_00000001").iterdir():
        assert path.read_bytes() == (tmp_path / "step_00000001" / path.name).read_bytes()


def test_a_checkpoint_of_a_smaller_model_is_refused_with_the_tensor(tmp_path: Path) -> None:
    save(tmp_path, 1, build_state(1, width=7), keep=1)
    with pytest.raises(Refusal, match=r"holds 21 of 24 elements of generator/master/0\.weight; it is of another"):
        load(tmp_path / "step_00000001", build_state(1, width=8))


def test_a_seeded_state_is_drawn_alike() -> None:
    one, other = content(build_state(1)), content(build_state(2))
    assert_equal(content(build_state(1)), one)
    assert not torch.equal(one["generator/0.weight/weight"], other["generator/0.weight/weight"])
    assert not torch.equal(one["average/0.weight@0"], other["average/0.weight@0"])

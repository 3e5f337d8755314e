"""How far a stage has come, from its arguments and what is on the disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from slurm import progress
from slurm.arguments import first_value, value
from slurm.stages import Call


def called(argv: list[str]) -> list[Call]:
    return [Call("any", tuple(argv))]


def log(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_the_value_that_is_said_last_wins_and_files_come_before_overrides(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("run: {folder: a, steps: 1, seed: 7}\n")
    second.write_text("run: {folder: b, steps: 2}\n")
    argv = [str(first), "run.steps=3", str(second), "run.steps=4"]
    assert [value(argv, f"run.{key}") for key in ("folder", "steps", "seed", "other")] == ["b", 4, 7, None]
    assert value([], "run.folder") is None
    assert value(['output="/my videos: all #1"'], "output") == "/my videos: all #1"


def test_a_configuration_file_in_the_folder_of_a_sweeps_point_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rate=0.1" / "config.yaml"
    path.parent.mkdir()
    path.write_text("run: {steps: 9}\n")
    assert value([str(path)], "run.steps") == 9


def test_progress_is_what_was_logged_last(tmp_path: Path) -> None:
    argv = [f"run.folder={tmp_path}/train", "run.steps=20"]
    assert progress.read(called(argv)) is None
    path = log(tmp_path / "train", {"step": 1, "loss/total": 5.0, "perf/step_s": 9.0})
    with path.open("a") as file:
        file.write('{"step": 4, "loss/total": 2.5, "perf/step_s": 0.5}\n{"step": 5, "loss/total": 2.')
    assert progress.read(called(argv)) == progress.Progress(4, 20, 2.5, 0.5)
    assert progress.Progress(4, 20, 2.5, 0.5).remaining_s == 8
    assert progress.Progress(21, 20, 2.5, 0.5).remaining_s == 0
    assert progress.Progress(4, None, 2.5, 0.5).remaining_s is None
    assert progress.read(called(["output=here"])) is None


def test_a_line_of_validation_hides_neither_loss_nor_rate(tmp_path: Path) -> None:
    log(tmp_path, {"step": 10, "loss/total": 2.5, "perf/step_s": 0.5}, {"step": 10, "validation/FP": 3.0})
    metrics = progress.read_metrics(tmp_path)
    assert metrics == {"step": 10, "loss/total": 2.5, "perf/step_s": 0.5, "validation/FP": 3.0}
    assert progress.read(called([f"run.folder={tmp_path}"])) == progress.Progress(10, None, 2.5, 0.5)


def test_a_tokenizers_loss_is_its_reconstruction(tmp_path: Path) -> None:
    log(tmp_path, {"step": 3, "loss/reconstruction": 0.25, "loss/generator": 9.0})
    assert progress.read(called([f"run.folder={tmp_path}"])) == progress.Progress(3, None, 0.25, None)


def test_of_several_programs_the_last_that_has_logged_is_shown_and_all_are_measured(tmp_path: Path) -> None:
    log(tmp_path / "first", {"step": 20, "loss/total": 1.0})
    calls = [*called([f"run.folder={tmp_path}/first"]), *called([f"run.folder={tmp_path}/second", "clips.shards=s"])]
    assert progress.read(calls) == progress.Progress(20, None, 1.0, None)
    log(tmp_path / "second", {"step": 3, "loss/total": 2.0})
    assert progress.read(calls) == progress.Progress(3, None, 2.0, None)
    assert progress.measure(calls) == "step_00000000, step_00000000"
    assert [first_value(calls, key) for key in ("run.folder", "clips.shards", "no")] == [f"{tmp_path}/first", "s", None]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    lines = [{"step": step, "loss/total": step / 2} for step in range(4000)]
    path = log(tmp_path, {"step": -1, "loss/early": 1.0}, *lines)
    assert path.stat().st_size > progress.TAIL_BYTES
    assert progress.read_metrics(tmp_path) == {"step": 3999, "loss/total": 1999.5}


@pytest.mark.parametrize("content", ["", '{"step": 1'])
def test_a_log_without_a_whole_line_is_none_yet(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    assert progress.read_metrics(tmp_path) is None


def test_training_is_measured_by_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    argv = [f"run.folder={tmp_path}"]
    assert progress.measure(called(argv)) == "step_00000000"
    for name, is_complete in (("step_00000900", True), ("step_00001000", True), ("step_00001100", False)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if is_complete:
            (tmp_path / "checkpoints" / name / "COMPLETE").touch()
    assert progress.measure(called(argv)) == "step_00001000"


def test_other_stages_are_measured_by_the_number_of_their_files(tmp_path: Path) -> None:
    argv = [f"output={tmp_path}/made"]
    assert progress.measure(called(argv)) == "0 files"
    for name in ("a", "train/b", "train/c"):
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert progress.measure(called(argv)) == "3 files"
    assert progress.measure(called([])) == "0 files"

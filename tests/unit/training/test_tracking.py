import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    PLUGIN_NAME,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from magvit_scale.config import (
    MAY_CHANGE,
    ClipsConfig,
    OptimConfig,
    Refusal,
    RunConfig,
    TrainVQGANConfig,
    load,
    to_yaml,
)
from magvit_scale.training.tracking import PACKAGES, Tracker, claim_run_folder, hyperparameters, refuse_other_config


@pytest.fixture(autouse=True)
def _event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files in the order of their names: second, process, number. Two of one process and one second
    must not be numbers 9 and 10; a resumed run has a second of its own.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def config(tmp_path: Path) -> TrainVQGANConfig:
    run = RunConfig(folder=str(tmp_path / "run"), steps=4, global_batch_size=2)
    return TrainVQGANConfig(run=run, clips=ClipsConfig(shards="shards"))


def events(folder: Path) -> Any:
    """What TensorBoard shows."""
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, make_ndarray(event.tensor_proto).tolist()) for event in events(folder).Tensors(tag)]


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_claiming_writes_the_resolved_config_and_the_environment(config: TrainVQGANConfig) -> None:
    folder = Path(config.run.folder)
    claim_run_folder(folder, config)
    assert load(TrainVQGANConfig, [folder / "config.yaml"]) == config
    environment = json.loads((folder / "env.json").read_text())
    assert {"python", "host", "gpus", *PACKAGES} == set(environment)
    assert environment["torch"].split(".")[0].isdigit()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "env.json"]


def test_the_same_config_is_accepted_and_the_files_are_the_same(config: TrainVQGANConfig) -> None:
    folder = Path(config.run.folder)
    refuse_other_config(folder, config)
    claim_run_folder(folder, config)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refuse_other_config(folder, config)
    claim_run_folder(folder, config)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


MAY_DIFFER = ["run.folder=moved", "run.gradient_accumulation=2", "run.log_every=7", "run.sample_every=0",
              "run.checkpoint_every=3", "run.keep_checkpoints=5", "run.keep_every=100", "run.keep_best=loss/total",
              "run.best_is=highest", "run.deepspeed=other.json", "run.activation_checkpointing=blocks",
              "run.dead_after_s=5", "run.hang_after_s=0", "run.profile_steps=[2,3]", "discriminator_deepspeed=d.json",
              "health.max_rollbacks=9", "health.non_finite=rollback", "health.rules.loss_spike.action=rollback",
              "health.rules.mine.metric=loss/r1 health.rules.mine.above=2", "clips.num_workers=0",
              "clips.cache=elsewhere", "clips.cache_gb=1"]  # fmt: skip
MUST_STAY = ["run.steps=5", "run.global_batch_size=4", "run.seed=1", "run.precision=bf16", "run.compile=true",
             "clips.shards=other", "clips.size_px=64", "model.codebook_size=2",
             "discriminator.base_channels=32", "loss.r1_weight=1", "loss.adaptive_weight=true", "optim.warmup_steps=3",
             "codebook_use.revive_every=10", "init=elsewhere"]  # fmt: skip


def changed(folder: Path, change: str) -> TrainVQGANConfig:
    return load(TrainVQGANConfig, [folder / "config.yaml"], change.split())


@pytest.mark.parametrize("change", MAY_DIFFER)
def test_how_it_is_computed_may_change_and_is_written_down(config: TrainVQGANConfig, change: str) -> None:
    folder = Path(config.run.folder)
    claim_run_folder(folder, config)
    other = changed(folder, change)
    assert other != config
    refuse_other_config(folder, other)
    claim_run_folder(folder, other)
    assert load(TrainVQGANConfig, [folder / "config.yaml"]) == other


@pytest.mark.parametrize("change", MUST_STAY)
def test_what_is_computed_may_not_change(config: TrainVQGANConfig, change: str) -> None:
    folder = Path(config.run.folder)
    claim_run_folder(folder, config)
    key = change.split("=")[0]
    with pytest.raises(Refusal, match=rf"has {key}=\S+, this run {key}=\S+; give another run\.folder or the same"):
        refuse_other_config(folder, changed(folder, f"{change} run.log_every=7"))


def test_another_config_is_refused_with_the_first_key_that_differs(config: TrainVQGANConfig) -> None:
    folder = Path(config.run.folder)
    claim_run_folder(folder, config)
    written = (folder / "config.yaml").read_bytes()
    other = replace(config, run=replace(config.run, seed=7))
    with pytest.raises(Refusal) as refused:
        refuse_other_config(folder, other)
    assert str(refused.value) == (
        f"{folder}/config.yaml has run.seed=0, this run run.seed=7; give another run.folder or the same values"
    )
    with pytest.raises(Refusal, match=r"has optim\.betas=\(0\.0, 0\.99\), this run optim\.betas=\(0\.5, 0\.9\)"):
        refuse_other_config(folder, replace(other, optim=OptimConfig(betas=(0.5, 0.9))))
    assert (folder / "config.yaml").read_bytes() == written


def test_a_value_that_appears_is_a_difference_too(config: TrainVQGANConfig) -> None:
    folder = Path(config.run.folder)
    claim_run_folder(folder, config)
    with pytest.raises(Refusal, match="has init=None, this run init=elsewhere"):
        refuse_other_config(folder, replace(config, init="elsewhere"))


def test_a_line_per_call_with_step_time_and_short_numbers(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0)
    tracker.scalars(3, {"loss/total": 1 / 3, "codebook/usage_batch": 1.0})
    tracker.scalars(6, {"loss/total": 1.23456789e-12})
    tracker.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert list(first) == ["step", "time", "loss/total", "codebook/usage_batch"]
    assert (first["step"], first["loss/total"], first["codebook/usage_batch"]) == (3, 0.333333, 1.0)
    assert tracker.last == {"loss/total": 1.23457e-12, "codebook/usage_batch": 1.0}
    assert (second["step"], second["loss/total"]) == (6, 1.23457e-12)


@pytest.mark.parametrize("half", ["", '{"step": 4, "time": 1.5, "loss/to', "{"], ids=["whole", "half a line", "brace"])
def test_a_resume_cuts_what_it_will_do_again(tmp_path: Path, half: str) -> None:
    tracker = Tracker(tmp_path, 0)
    for step in (1, 2, 2, 3):  # a step may have two lines: training and validation
        tracker.scalars(step, {"loss/total": float(step)})
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:3]
    path.write_text(path.read_text() + half)
    tracker = Tracker(tmp_path, 2)
    assert path.read_text() == tracker.text() == "".join(kept)
    assert tracker.last == {"loss/total": 2.0}
    tracker.scalars(3, {"loss/total": 30.0})
    tracker.close()
    assert steps(tmp_path) == [1, 2, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    assert points(tmp_path, "loss/total") == [(1, 1.0), (2, 2.0), (2, 2.0), (3, 30.0)]


def test_a_start_from_the_beginning_cuts_everything(tmp_path: Path) -> None:
    killed = Tracker(tmp_path, 0)  # before its first checkpoint
    killed.scalars(5, {"loss/total": 1.0})
    killed.flush()
    again = Tracker(tmp_path, 0)
    assert steps(tmp_path) == []
    again.scalars(1, {"loss/total": 3.0})
    again.close()
    killed.close()
    assert points(tmp_path, "loss/total") == [(1, 3.0)]


def test_tensorboard_holds_scalars_pictures_and_histograms(tmp_path: Path) -> None:
    frames = np.arange(0, 150, 50, np.uint8)[:, None, None, None] + np.zeros((4, 6, 3), np.uint8)
    tracker = Tracker(tmp_path, 0)
    tracker.scalars(7, {"loss/total": 0.5})
    tracker.moving_picture(7, "reconstructions/moving", frames, "words", fps=5)
    tracker.picture(7, "reconstructions/still", frames[0], "words")
    tracker.histogram(7, "codebook/use", torch.tensor([0.0, 0.0, 3.0, 1.0]))
    tracker.close()
    assert points(tmp_path, "loss/total") == [(7, 0.5)]
    ((step, buckets),) = points(tmp_path, "codebook/use")  # (left, right, count) of each
    assert (step, sum(count for _, _, count in buckets)) == (7, 4)
    assert [count for left, right, count in buckets if left <= 3 <= right and count] == [1]
    for kind, encoding, num_frames in (("moving", "GIF", 3), ("still", "PNG", 1)):
        ((step, (width, height, encoded)),) = points(tmp_path, f"reconstructions/{kind}")
        picture = Image.open(io.BytesIO(encoded))
        assert (step, width, height, picture.size) == (7, b"6", b"4", (6, 4))
        assert (picture.format, getattr(picture, "n_frames", 1)) == (encoding, num_frames)
        assert events(tmp_path).SummaryMetadata(f"reconstructions/{kind}").summary_description == "words"


def introduced(folder: Path, config: TrainVQGANConfig, start: int) -> list[list[int]]:
    """The steps of both texts, after a start that dies at once."""
    tracker = Tracker(folder, start)
    tracker.introduce(config)
    tracker.scalars(start + 1, {"loss/total": 1.0})
    tracker.close()
    return [[step for step, _ in points(folder, f"{name}/text_summary")] for name in ("config", "environment")]


def test_what_a_run_is_stands_once_however_often_it_starts(config: TrainVQGANConfig, tmp_path: Path) -> None:
    for start in (0, 0, 4, 4, 8):  # the second and the fourth after a kill before the next checkpoint
        assert introduced(tmp_path / "run", config, start) == [[1], [1]]
    assert points(tmp_path / "run", "config/text_summary") == [(1, [f"```\n{to_yaml(config)}\n```".encode()])]
    # A checkpoint was copied into a new run folder.
    assert introduced(tmp_path / "forked", config, 4) == introduced(tmp_path / "forked", config, 8) == [[5], [5]]


def test_hyperparameters_are_of_the_run_itself_and_leave_room_for_those_of_others(
    config: TrainVQGANConfig, tmp_path: Path
) -> None:
    for start in (0, 2):
        introduced(tmp_path, config, start)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tensorboard"]
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir()), "a second run"
    found = events(tmp_path)
    assert list(found.PluginTagToContent(PLUGIN_NAME)) == [SESSION_START_INFO_TAG]
    start_info = parse_session_start_info_plugin_data(found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    values = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start_info.hparams.items()}
    assert values == hyperparameters(config)


def test_hyperparameters_are_plain_values_of_what_decides_the_result(config: TrainVQGANConfig) -> None:
    found = hyperparameters(config)
    expected = {"run.steps": 4, "run.precision": "fp32", "run.compile": "false", "init": "null",
                "optim.betas": "[0.0, 0.99]", "model.channel_multipliers": "[1, 2, 2, 4]",
                "loss.r1_weight": config.loss.r1_weight}  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert not [name for name in found if name.startswith(MAY_CHANGE)]


def test_notes_go_to_the_log_and_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start in (0, 2):
        tracker = Tracker(tmp_path, start)
        tracker.note(f"step {start} of 4", "an UNTRAINED network")
        tracker.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 0 of 4", "an UNTRAINED network", "step 2 of 4", "an UNTRAINED network"
    ]  # fmt: skip
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines[1:3]] == ["an UNTRAINED network", "step 2 of 4"]

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from magvit_scale.config import ClipsConfig, OptimConfig, Refusal, RunConfig, TrainVQGANConfig, load
from magvit_scale.training.tracking import PACKAGES, Tracker, claim_run_folder, refuse_other_config


@pytest.fixture
def config(tmp_path: Path) -> TrainVQGANConfig:
    run = RunConfig(folder=str(tmp_path / "run"), steps=4, global_batch_size=2)
    return TrainVQGANConfig(run=run, clips=ClipsConfig(shards="shards"))


def events(folder: Path) -> Any:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


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
    scalars = [(event.step, event.value) for event in events(tmp_path).Scalars("loss/total")]
    assert scalars == [(1, 1.0), (2, 2.0), (2, 2.0), (3, 30.0)]


def test_a_start_from_the_beginning_cuts_everything(tmp_path: Path) -> None:
    killed = Tracker(tmp_path, 0)  # before its first checkpoint
    killed.scalars(5, {"loss/total": 1.0})
    killed.flush()
    again = Tracker(tmp_path, 0)
    assert steps(tmp_path) == []
    again.scalars(1, {"loss/total": 3.0})
    again.close()
    killed.close()
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss/total")] == [(1, 3.0)]


def test_tensorboard_holds_scalars_and_moving_pictures(tmp_path: Path) -> None:
    clips = np.zeros((2, 3, 4, 6, 3), np.uint8)  # two clips of three frames, 4 high and 6 wide
    clips[0, :, :, :, 0] = np.array([0, 100, 200], np.uint8)[:, None, None]
    clips[1, :, :, :, 2] = 255
    tracker = Tracker(tmp_path, 0)
    tracker.scalars(7, {"loss/total": 0.5})
    tracker.clips(7, "reconstructions", clips, fps=5)
    tracker.close()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("loss/total")] == [(7, 0.5)]
    (image,) = found.Images("reconstructions")
    assert (image.step, image.width, image.height) == (7, 12, 4)
    gif = Image.open(io.BytesIO(image.encoded_image_string))
    assert (gif.format, getattr(gif, "n_frames", 1), gif.size, gif.info["duration"], gif.info["loop"]) == (
        "GIF",
        3,
        (12, 4),
        200,
        0,
    )
    reds = []
    for frame in range(3):
        gif.seek(frame)
        left, right = (np.array(gif.convert("RGB"))[2, x] for x in (2, 9))
        reds.append(int(left[0]))
        assert right.tolist() == [0, 0, 255]
    assert reds == pytest.approx([0, 100, 200], abs=2)


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

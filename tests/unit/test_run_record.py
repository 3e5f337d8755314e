"""What is known of a model beside its run, and what of the data that the run names."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from magvit_scale import run_record
from magvit_scale.config import ClipsConfig, RunConfig, TrainVQGANConfig
from magvit_scale.run_record import ClipFacts, RunRecord, open_clips, read_clip_facts, read_run_record

RECORD = RunRecord(
    config=TrainVQGANConfig(
        run=RunConfig(folder="unused", steps=1, global_batch_size=1),
        clips=ClipsConfig(shards="shards", num_frames=8, size_px=64, frame_stride=2),
    ),
    losses={}, environment={}, data="abc", num_ranks=None, step=None,
)  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clip shards of 24 frames per second whose fingerprint is that of the record."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/dataset.json").write_text("{}")
    monkeypatch.setattr(run_record, "fingerprint", lambda clips: "abc")
    monkeypatch.setattr(run_record, "load_dataset", lambda folder: SimpleNamespace(fps=24.0))
    return tmp_path / "shards"


def test_a_clips_rate_is_that_of_its_frames_and_not_of_the_stored_ones(shards: Path, tmp_path: Path) -> None:
    assert read_clip_facts(tmp_path, RECORD) == ClipFacts(num_frames=8, size_px=64, frame_stride=2, fps=12.0)


def test_data_that_changed_or_are_gone_are_not_believed(shards: Path, tmp_path: Path) -> None:
    assert open_clips(replace(RECORD, data="other")) is None
    (shards / "dataset.json").unlink()
    assert open_clips(RECORD) is None
    assert read_clip_facts(tmp_path, RECORD).fps is None


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/shards", "pipe:false", "s3://bucket/shards"])
def test_remote_data_are_not_asked(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "load_dataset", lambda folder: pytest.fail("opened"))
    config = TrainVQGANConfig(run=RECORD.config.run, clips=ClipsConfig(shards=place))
    assert open_clips(replace(RECORD, config=config)) is None


def test_a_model_outside_a_run_has_no_record(tmp_path: Path) -> None:
    assert read_run_record(tmp_path / "export") is None
    assert read_clip_facts(tmp_path / "export", None) == ClipFacts()

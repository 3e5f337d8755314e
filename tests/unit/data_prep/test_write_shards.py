import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep import list_videos
from data_prep.write_shards import main
from magvit_scale.config import Refusal
from magvit_scale.data.shards import load_dataset
from magvit_scale.video import decode, decode_mp4


@pytest.fixture(scope="session")
def manifest(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    list_videos.main([f"videos={shapes}", f"output={folder}"])
    return folder / "manifest.jsonl"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("encoding", ["raw", "h264"])
def test_plain_webdataset_and_index_give_the_same_videos(
    manifest: Path, shapes: Path, tmp_path: Path, encoding: str
) -> None:
    main([f"manifest={manifest}", f"output={tmp_path}", "size_px=16", f"encoding={encoding}", "videos_per_shard=5"])
    dataset = load_dataset(tmp_path)
    assert len(dataset.classes) == 8
    assert [len(dataset.shards(split)) for split in ("train", "test")] == [4, 2]
    tars = [str(shard.path) for shard in dataset.shards("train")]
    streamed = list(webdataset.WebDataset(tars, shardshuffle=False))
    samples = dataset.samples("train")
    assert [item["__key__"] for item in streamed] == [sample.key for sample in samples]
    assert len({sample.key for sample in samples}) == 16
    for item, sample in zip(streamed, samples, strict=True):
        about = json.loads(item["json"])
        assert (about["label"], about["num_frames"], about["fps"]) == (sample.label, 20, 8.0)
        frames = np.load(io.BytesIO(item["npy"])) if encoding == "raw" else decode_mp4(item["mp4"], 0, 20)
        assert np.array_equal(dataset.read_video(sample, 3, 12, 2), frames[3:12:2])
        source = decode(shapes / about["source"], size_px=16).astype(int)
        assert np.abs(source - frames).mean() < (0.001 if encoding == "raw" else 8)
    # Every shard mixes classes.
    assert len({sample.label for sample in samples[:5]}) > 2


def test_killed_and_run_again_gives_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    part = tmp_path / "manifest.jsonl"
    part.write_text("".join(manifest.read_text().splitlines(keepends=True)[:12]))
    arguments = [f"manifest={part}", "size_px=16", "videos_per_shard=2", "num_workers=1"]
    main([*arguments, f"output={tmp_path / 'whole'}"])
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.write_shards", *arguments, f"output={tmp_path / 'cut'}"]
    )
    while not list((tmp_path / "cut").rglob("clips-000001.json")):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/dataset.json").exists()
    main([*arguments, f"output={tmp_path / 'cut'}", "num_workers=2"])
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_damaged_shard_is_written_again(manifest: Path, tmp_path: Path) -> None:
    arguments = [f"manifest={manifest}", f"output={tmp_path}", "size_px=16", "encoding=raw"]
    main(arguments)
    before = content(tmp_path)
    os.truncate(tmp_path / "train/clips-000000.tar", 1000)
    with pytest.raises(Refusal, match="1000 bytes, expected"):
        load_dataset(tmp_path).samples("train")
    main(arguments)
    assert content(tmp_path) == before
    with pytest.raises(Refusal, match="other settings"):
        main([*arguments, "size_px=32"])


def test_videos_that_vanish_are_skipped_until_they_are_most(manifest: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    records[0]["path"] = "bounce/gone.mp4"
    altered = tmp_path / "manifest.jsonl"
    altered.write_text("".join(json.dumps(record) + "\n" for record in records))
    main([f"manifest={altered}", f"output={tmp_path / 'one'}", "size_px=16", "encoding=raw"])
    (error,) = (json.loads(line) for line in (tmp_path / "one/errors.jsonl").read_text().splitlines())
    assert (error["source"], error["stage"]) == ("bounce/gone.mp4", "write_shards")
    assert json.loads((tmp_path / "one/dataset.json").read_text())["total"] == 23
    for record in records:
        record["folder"] = "/nowhere"
    altered.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(Refusal, match="24 of 24 videos failed"):
        main([f"manifest={altered}", f"output={tmp_path / 'all'}", "size_px=16", "encoding=raw"])


def test_refusals_say_what_to_do(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"data_prep\.list_videos"):
        main([f"manifest={tmp_path / 'none'}", f"output={tmp_path}"])
    with pytest.raises(Refusal, match="even"):
        main([f"manifest={manifest}", f"output={tmp_path}", "size_px=15"])
    with pytest.raises(Refusal, match=r"data_prep\.write_shards"):
        load_dataset(tmp_path)

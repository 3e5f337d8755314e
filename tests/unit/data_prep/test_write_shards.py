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

from data_prep import check_shards, list_videos
from data_prep.write_shards import main
from magvit_scale.config import Refusal
from magvit_scale.data.frames import decompressed
from magvit_scale.data.shards import load_dataset
from magvit_scale.video import decode, encode_mp4
from magvit_scale.video_bytes import decode_mp4


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


def test_zstd_is_lossless(manifest: Path, tmp_path: Path) -> None:
    arguments = [f"manifest={manifest}", "size_px=16", "max_frames=3"]
    for encoding in ("raw", "zstd"):
        main([*arguments, f"output={tmp_path / encoding}", f"encoding={encoding}"])
    raw, zstd = (sorted((tmp_path / encoding).rglob("*.tar")) for encoding in ("raw", "zstd"))
    for item, packed in zip(
        *(webdataset.WebDataset(list(map(str, tars)), shardshuffle=False) for tars in (raw, zstd)), strict=True
    ):
        assert item["__key__"] == packed["__key__"]
        assert decompressed(packed["npy.zst"], len(item["npy"])) == item["npy"]
    with pytest.raises(ValueError, match="at most 100"):
        decompressed(packed["npy.zst"], 100)


@pytest.mark.parametrize("encoding", ["h264", "raw", "zstd"])
def test_a_kept_aspect_has_the_short_side_and_an_even_long_one(tmp_path: Path, encoding: str) -> None:
    for split, (height, width) in enumerate([(30, 54), (54, 30)]):
        frames = np.zeros((4, height, width, 3), np.uint8)
        frames[:, :, : width // 2] = 200  # the left half is bright
        (tmp_path / "videos").mkdir(exist_ok=True)
        encode_mp4(frames, tmp_path / f"videos/{split}.mp4", fps=8)
    list_videos.main([f"videos={tmp_path / 'videos'}", f"output={tmp_path}", "min_frames=4"])
    arguments = [f"manifest={tmp_path}/manifest.jsonl", f"output={tmp_path}", "size_px=16", "keep_aspect=true"]
    main([*arguments, f"encoding={encoding}"])
    for name, expected in (("0.mp4", (16, 28)), ("1.mp4", (28, 16))):
        (line,) = (line for line in index_lines(tmp_path) if line["source"] == name)
        assert (line["height"], line["width"], line["num_frames"]) == (*expected, 4)
    check_shards.main([f"shards={tmp_path}"])
    with pytest.raises(Refusal, match="takes even sizes only"):
        main([*arguments, "size_px=15", f"encoding={encoding}"])


def index_lines(folder: Path) -> list[dict]:
    return [line for path in sorted(folder.glob("*/*.json")) for line in json.loads(path.read_text())["samples"]]


def test_an_index_tells_what_was_stored_and_how(manifest: Path, tmp_path: Path) -> None:
    main([f"manifest={manifest}", f"output={tmp_path}", "size_px=16", "max_frames=6", "fps=4"])
    index = json.loads((tmp_path / "train/clips-000000.json").read_text())
    stats = index["stats"]
    assert (stats["videos"], stats["stored"], stats["failed"], stats["frames"]) == (16, 16, 0, 96)
    assert (stats["seconds"], stats["errors"]) == (24.0, {})
    assert stats["bytes"] == sum(line["size"] for line in index["samples"])
    assert {"crf": 18, "gop": 16, "bf": 0, "preset": "veryfast", "tune": "fastdecode"}.items() <= stats[
        "encoder"
    ].items()
    assert stats["encoder"]["ffmpeg"].startswith("ffmpeg version ")
    assert {(line["height"], line["width"], line["fps"]) for line in index["samples"]} == {(16, 16, 4)}


def test_a_video_named_twice_is_refused(manifest: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines(keepends=True)
    (tmp_path / "manifest.jsonl").write_text("".join([*lines, lines[0]]))
    with pytest.raises(Refusal, match="2 times, expected once"):
        main([f"manifest={tmp_path}/manifest.jsonl", f"output={tmp_path}"])

"""Clips at given places: none left out, none replaced."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from magvit_scale.config import Refusal
from magvit_scale.data.real_clips import RealVideos, read_cuts
from magvit_scale.data.shards import load_dataset


def test_videos_of_both_splits_stand_in_the_order_of_their_names(shards: Path) -> None:
    videos = RealVideos(str(shards / "raw"), ["train", "test"])
    keys = [sample.key for sample in videos.samples]
    dataset = load_dataset(shards / "raw")
    assert keys == sorted(sample.key for split in ("train", "test") for sample in dataset.samples(split))
    assert videos.lengths() == [20] * 24
    assert videos.labels([0, 23]).tolist() == [videos.samples[0].class_id, videos.samples[23].class_id]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_cut_gives_the_stored_frames_from_its_place_in_order(shards: Path, num_workers: int) -> None:
    videos = RealVideos(str(shards / "raw"), ["train"])
    cuts = [(5, 0), (0, 11), (5, 3), (2, 7), (0, 11)]
    batches = list(read_cuts(videos, cuts, num_frames=3, frame_stride=4, batch_size=2, num_workers=num_workers))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for (video, start), clip in zip(cuts, [clip for batch in batches for clip in batch], strict=True):
        whole = videos.dataset.read_video(videos.samples[video], 0, 20)
        assert np.array_equal(clip, whole[[start, start + 4, start + 8]])


def test_a_video_that_does_not_decode_is_refused_and_not_left_out(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "h264", tmp_path / "damaged")
    videos = RealVideos(str(tmp_path / "damaged"), ["train"])
    sample = videos.samples[1]
    with sample.shard.open("r+b") as file:
        file.seek(sample.offset)
        file.write(bytes(sample.size))
    with pytest.raises(Refusal, match=f"{sample.key}: .*; a protocol leaves no clip out"):
        list(read_cuts(videos, [(0, 0), (1, 0)], num_frames=4, num_workers=1))

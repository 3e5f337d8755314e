import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.clips import held_out_clips, to_unit_range, training_batches, views
from magvit_scale.data.cutting import cut_clip
from magvit_scale.data.order import Order, keyed_generator
from magvit_scale.data.shards import load_dataset
from tests.unit.data.conftest import Clips


def global_batches(config: ClipsConfig, world_size: int, start_step: int, steps: int) -> Iterator[torch.Tensor]:
    ranks = [
        training_batches(
            config, seed=3, global_batch_size=12, rank=rank, world_size=world_size, start_step=start_step, steps=steps
        )
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        yield torch.cat([part["clip"] for part in parts])


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (1, 2), (3, 1)])
def test_global_batches_do_not_depend_on_the_machines(clips: Clips, world_size: int, num_workers: int) -> None:
    expected = list(global_batches(clips(), 1, 0, 3))
    assert (expected[0].shape, expected[0].dtype) == ((12, 3, 8, 16, 16), torch.uint8)
    found = list(global_batches(clips(num_workers=num_workers), world_size, 0, 3))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    # Seeking to step 2 crosses the border of the first pass (16 videos).
    (last,) = global_batches(clips(num_workers=num_workers), world_size, 2, 1)
    assert torch.equal(last, expected[2])
    assert not torch.equal(expected[0], expected[1])


def test_batch_must_divide(clips: Clips) -> None:
    with pytest.raises(Refusal, match="not a multiple of the 5 ranks"):
        training_batches(clips(), seed=0, global_batch_size=12, rank=0, world_size=5, start_step=0, steps=1)
    with pytest.raises(Refusal, match="holds frames of 16 px"):
        training_batches(clips(size_px=32), seed=0, global_batch_size=1, rank=0, world_size=1, start_step=0, steps=1)


def test_windows_strides_flips_and_padding(clips: Clips) -> None:
    dataset = load_dataset(clips().shards)
    sample = dataset.samples("train")[0]
    video = dataset.read_video(sample, 0, 20)
    assert np.array_equal(cut_clip(dataset, sample, clips(), None), video[6:14])
    assert np.array_equal(cut_clip(dataset, sample, clips(frame_stride=2), None), video[3:18:2])
    long = cut_clip(dataset, sample, clips(num_frames=24), None)
    assert np.array_equal(long, np.concatenate([video, video[-1:].repeat(4, 0)]))
    drawn = [cut_clip(dataset, sample, clips(), keyed_generator(number)) for number in range(120)]
    windows = {(start, step): video[start : start + 8, :, ::step] for start in range(13) for step in (1, -1)}
    seen = {place for clip in drawn for place, window in windows.items() if np.array_equal(clip, window)}
    assert {start for start, _ in seen} == set(range(13))
    assert {step for _, step in seen} == {1, -1}
    unflipped = [
        cut_clip(dataset, sample, clips(horizontal_flip=False), keyed_generator(number)) for number in range(20)
    ]
    assert all(any(np.array_equal(clip, windows[start, 1]) for start in range(13)) for clip in unflipped)


def test_sampled_frames_are_spread_evenly_as_the_released_code_takes_them(clips: Clips) -> None:
    dataset = load_dataset(clips().shards)
    sample = dataset.samples("train")[0]
    video = dataset.read_video(sample, 0, 20)
    found = cut_clip(dataset, sample, clips(num_frames=16, sampled_frames=4), None)
    assert np.array_equal(found, video[2:18][[3, 6, 10, 13]])
    strided = cut_clip(dataset, sample, clips(num_frames=8, frame_stride=2, sampled_frames=3), None)
    assert np.array_equal(strided, video[3:18:2][[2, 4, 6]])
    assert np.array_equal(
        cut_clip(dataset, sample, clips(sampled_frames=8), None), video[6:14][[1, 2, 3, 4, 4, 5, 6, 7]]
    )
    padded = cut_clip(dataset, sample, clips(num_frames=40, sampled_frames=4), None)
    assert np.array_equal(padded, video[[8, 16, 19, 19]])
    for count in (0, 9):
        with pytest.raises(Refusal, match=f"sampled_frames={count}: expected 1 to clips.num_frames=8"):
            next(held_out_clips(clips(sampled_frames=count), 1, 1))


@pytest.mark.parametrize("encoding", ["raw", "h264"])
def test_held_out_clips_are_centre_windows_first(clips: Clips, encoding: str) -> None:
    config = clips(encoding, split="test")
    dataset = load_dataset(config.shards)
    batches = list(held_out_clips(config, 20, 6))
    assert [len(batch["key"]) for batch in batches] == [6, 6, 6, 2]
    samples = dataset.samples("test")
    found = torch.cat([batch["clip"] for batch in batches])
    assert [key for batch in batches for key in batch["key"]] == [
        sample.key for sample in (*samples, *samples, *samples)
    ][:20]
    for number, (start, sample) in enumerate(zip([6] * 8 + [3] * 8 + [9] * 4, [*samples] * 3, strict=False)):
        window = dataset.read_video(sample, start, start + 8)
        assert np.array_equal(found[number].permute(1, 2, 3, 0).numpy(), window)


def test_views_start_with_the_centre_only_in_test(clips: Clips) -> None:
    centre = next(iter(held_out_clips(clips(split="test"), 7, 7)))
    shard = list(views(clips(split="test"), views=3, seed=0, shard=0))
    assert [item["key"] for item in shard] == centre["key"]
    assert all(torch.equal(item["clip"][0], clip) for item, clip in zip(shard, centre["clip"], strict=True))
    again = list(views(clips(split="test"), views=3, seed=0, shard=0))
    assert all(torch.equal(a["clip"], b["clip"]) for a, b in zip(shard, again, strict=True))
    assert not all(torch.equal(item["clip"][1], item["clip"][2]) for item in shard)


def damage(folder: Path, copy: Path, count: int) -> None:
    """Copies h264 shards with the bytes of `count` training videos zeroed."""
    shutil.copytree(folder, copy)
    for sample in load_dataset(copy).samples("train")[:count]:
        sample.shard.chmod(0o644)
        with sample.shard.open("r+b") as file:
            file.seek(sample.offset)
            file.write(bytes(sample.size))


def test_too_many_broken_videos_stop_the_run(shards: Path, clips: Clips, tmp_path: Path) -> None:
    damage(shards / "h264", tmp_path / "bad", 1)
    config = clips(shards=str(tmp_path / "bad"))
    batches = training_batches(config, seed=0, global_batch_size=16, rank=0, world_size=1, start_step=0, steps=1)
    with pytest.raises(Refusal, match="1 of 16 videos do not decode, more than 5%"):
        next(batches)


def test_a_broken_video_is_replaced_by_the_next(
    shards: Path, clips: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(shards / "h264", tmp_path / "bad", 1)
    arguments = {"seed": 0, "global_batch_size": 16, "rank": 0, "world_size": 1, "start_step": 0, "steps": 1}
    whole = next(training_batches(clips("h264"), **arguments))
    found = next(training_batches(clips(shards=str(tmp_path / "bad"), max_broken_fraction=0.5), **arguments))
    order = Order(16, seed=0)
    (place,) = (position for position in range(16) if order.at(position) == 0)
    samples = load_dataset(shards / "h264").samples("train")
    for position in range(16):
        assert torch.equal(found["clip"][position], whole["clip"][position]) == (position != place)
    assert found["label"][place] == samples[order.at(place + 1)].class_id
    assert f"video {samples[0].key} does not decode" in capsys.readouterr().err


def test_a_shard_name_cannot_leave_its_folder(shards: Path, tmp_path: Path) -> None:
    content = json.loads((shards / "raw/dataset.json").read_text())
    content["splits"]["train"][0]["name"] = "../train/clips-000000.tar"
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match="leaves its folder"):
        load_dataset(tmp_path)


def test_unit_range() -> None:
    found = to_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0, 0.2, 1])

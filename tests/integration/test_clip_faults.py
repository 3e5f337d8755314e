"""What befalls readers of clips: SIGKILL at any moment, damaged tars, real videos, too few of everything."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.clips import held_out_clips, training_batches
from magvit_scale.data.order import Order
from magvit_scale.data.shards import load_dataset
from magvit_scale.files import write_json
from magvit_scale.video import decode
from magvit_scale.video_bytes import decode_mp4

NUM_KILLS = 50
BATCH = 12


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A reader that waits for ever ends its test."""

    def stop(*_: Any) -> None:
        raise TimeoutError("hangs")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    moving_shapes.main([f"output={folder / 'videos'}", "videos_per_class=3", "num_frames=20", "size_px=32"])
    list_videos.main([f"videos={folder / 'videos'}", f"output={folder}"])
    arguments = [f"manifest={folder / 'manifest.jsonl'}", f"output={folder / 'h264'}", "size_px=32"]
    write_shards.main([*arguments, "videos_per_shard=6"])
    return folder / "h264"


def config_of(shards: Path, **changes: Any) -> ClipsConfig:
    return ClipsConfig(**{"shards": str(shards), "size_px": 24, "num_frames": 4, "num_workers": 0, **changes})


def global_batches(config: ClipsConfig, world_size: int, start_step: int, steps: int) -> Iterator[torch.Tensor]:
    ranks = [
        training_batches(
            config, seed=3, global_batch_size=BATCH, rank=rank, world_size=world_size, start_step=start_step,
            steps=steps,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for parts in zip(*ranks, strict=True):
        yield torch.cat([part["clip"] for part in parts])


def digest(batch: torch.Tensor) -> str:
    return hashlib.sha256(batch.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("window", [None, 2])
def test_global_batches_after_a_resume_on_other_machines(shards: Path, window: int | None) -> None:
    # 16 training videos: the batches reach into the third pass.
    expected = [digest(batch) for batch in global_batches(config_of(shards, shuffle_window=window), 1, 0, 4)]
    assert len(set(expected)) == 4
    for world_size, num_workers, start in ((1, 0, 2), (2, 1, 1), (4, 3, 3)):
        config = config_of(shards, shuffle_window=window, num_workers=num_workers)
        found = [digest(batch) for batch in global_batches(config, world_size, start, 4 - start)]
        assert found == expected[start:]


def read_until_killed(config: ClipsConfig, world_size: int, log: Path) -> None:
    """Goes on where the log ends; its last word is the only state."""
    with log.open("ab", buffering=0) as file:
        start = len(log.read_bytes().splitlines())
        for batch in global_batches(config, world_size, start, 10**6):
            file.write(digest(batch).encode() + b"\n")


def test_a_reader_killed_fifty_times_reads_what_an_undisturbed_one_reads(shards: Path, tmp_path: Path) -> None:
    log, chance = tmp_path / "log", random.Random(0)
    log.touch()
    for _ in range(NUM_KILLS):
        world_size, until = chance.choice([1, 2, 4]), log.stat().st_size + 65 * chance.randrange(3)
        child = os.fork()
        if child == 0:
            read_until_killed(config_of(shards), world_size, log)
            os._exit(1)
        while log.stat().st_size < until:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        log.write_bytes(log.read_bytes()[: log.stat().st_size // 65 * 65])
    found = log.read_text().split()
    assert len(found) > 20
    assert found == [digest(batch) for batch in global_batches(config_of(shards), 1, 0, len(found))]


def copied(shards: Path, copy: Path) -> Path:
    shutil.copytree(shards, copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


@pytest.mark.parametrize("num_workers", [0, 2])
def test_flipped_bits_replace_their_video_and_no_other(
    shards: Path, tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, chance = copied(shards, tmp_path / "bad"), random.Random(1)
    samples = load_dataset(shards).samples("train")
    struck = samples[3]
    path = folder / "train" / struck.shard.name
    content = bytearray(path.read_bytes())
    # The first bytes of the file, and then bits anywhere.
    content[struck.offset + 4 : struck.offset + 8] = b"xxxx"
    for _ in range(200):
        content[struck.offset + chance.randrange(struck.size)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    config = config_of(folder, max_broken_fraction=0.3, num_workers=num_workers)
    found = torch.cat(list(global_batches(config, 1, 0, 2)))
    whole = torch.cat(list(global_batches(config_of(shards), 1, 0, 2)))
    order = Order(len(samples), seed=3)
    for position in range(2 * BATCH):
        assert torch.equal(found[position], whole[position]) == (order.at(position) != 3)
    assert capsys.readouterr().err.count(f"video {struck.key} does not decode") == 1
    with pytest.raises(Refusal, match="1 of 16 videos do not decode, more than 3%; the last is"):
        list(global_batches(config_of(folder, max_broken_fraction=0.03, num_workers=num_workers), 1, 0, 2))


def test_random_damage_never_hangs_or_ends_in_anything_but_words(shards: Path, tmp_path: Path) -> None:
    folder, whole = copied(shards, tmp_path / "bad"), {path: path.read_bytes() for path in shards.rglob("*.*")}
    words: list[str] = []
    for seed in range(40):
        chance = random.Random(seed)
        original = chance.choice(sorted(whole))
        content = bytearray(whole[original])
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        for _ in range(chance.randrange(1, 30) if content else 0):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path = folder / original.relative_to(shards)
        path.write_bytes(content)
        try:
            (batch,) = global_batches(config_of(folder, max_broken_fraction=1), 1, 0, 1)
            assert batch.shape == (BATCH, 3, 4, 24, 24)
        except Refusal as refusal:
            words.append(str(refusal))
        path.write_bytes(whole[original])
    assert len(words) > 5
    assert all("\n" not in line and len(line) < 500 for line in words)


def test_what_a_worker_refuses_arrives_as_one_line(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "bad")
    batches = global_batches(config_of(folder, num_workers=2), 1, 0, 5)
    for path in folder.glob("train/*.json"):
        path.write_text("{")
    with pytest.raises(Refusal, match=r"clips-00000\d.json: not JSON") as refusal:
        next(batches)
    assert "\n" not in str(refusal.value)


def shrink(folder: Path, num_videos: int) -> Path:
    """Leaves so many videos in the training split, in one shard."""
    content = json.loads((folder / "dataset.json").read_text())
    (line, *_) = content["splits"]["train"]
    index_path = folder / "train" / line["name"].replace(".tar", ".json")
    index = json.loads(index_path.read_text())
    index["samples"] = index["samples"][:num_videos]
    content["splits"]["train"] = [{**line, "count": num_videos}]
    write_json(index_path, index)
    write_json(folder / "dataset.json", content)
    return folder


def test_too_few_of_everything(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = shrink(copied(shards, tmp_path / "few"), 5)
    # One shard of five videos for a batch of twelve, four ranks and eight workers.
    expected = digest(next(global_batches(config_of(few), 1, 0, 1)))
    assert "5 videos, fewer than a batch of 12: batches hold videos several times" in capsys.readouterr().err
    (batch,) = training_batches(
        config_of(few, num_workers=8), seed=3, global_batch_size=BATCH, rank=0, world_size=1, start_step=0, steps=1
    )
    assert digest(batch["clip"]) == expected
    assert digest(next(global_batches(config_of(few), 4, 0, 1))) == expected
    with pytest.raises(Refusal, match=r"split train holds no videos; run data_prep.write_shards again"):
        next(global_batches(config_of(shrink(few, 0)), 1, 0, 1))
    assert len(next(held_out_clips(config_of(few, split="test"), 3, 8))["key"]) == 3


def real_videos() -> list[Path]:
    folder = os.environ.get("MAGVIT_TEST_VIDEOS")
    if folder is None:
        return []
    found = [path for path in sorted(Path(folder).glob("*/*.*")) if path.parent.name != "broken"]
    assert len(found) == 14
    return found


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.name)
def test_windows_of_real_videos_are_those_of_a_sequential_decode(path: Path, tmp_path: Path) -> None:
    record = {
        "folder": str(path.parent), "path": path.name, "split": "train", "label": "a", "class_id": 0, "width": 64,
        "height": 64, "fps": 25.0, "num_frames": 48, "duration_s": 2.0, "sha256": "",
    }  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text(json.dumps(record) + "\n")
    arguments = [f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'shards'}"]
    write_shards.main([*arguments, "size_px=64", "max_frames=48", "num_workers=1"])
    dataset = load_dataset(tmp_path / "shards")
    (sample,) = dataset.samples("train")
    content = sample.shard.read_bytes()[sample.offset : sample.offset + sample.size]
    sequential = decode_mp4(content, 0, sample.num_frames)
    for start in range(0, sample.num_frames, 5):
        for stop in (start + 1, start + 16, sample.num_frames):
            if stop <= sample.num_frames:
                assert np.array_equal(dataset.read_video(sample, start, stop), sequential[start:stop])
    # And those are the frames that ffmpeg's own process decodes, one after the other.
    (tmp_path / "stored.mp4").write_bytes(content)
    expected = decode(tmp_path / "stored.mp4", size_px=64).astype(int)
    assert len(expected) == len(sequential)
    for number, frame in enumerate(sequential):
        around = {other: np.abs(frame - expected[other]).mean() for other in range(number - 1, number + 2)
                  if 0 <= other < len(expected)}  # fmt: skip
        assert around[number] == min(around.values()) < 8


def test_a_stream_through_the_command_line_says_that_it_cannot_resume(shards: Path) -> None:
    code = (
        "from magvit_scale.config import ClipsConfig; from magvit_scale.data.clips import training_batches; import sys;"
        "config = ClipsConfig(shards=sys.argv[1], size_px=24, num_frames=4, num_workers=1);"
        "found = list(training_batches(config, seed=0, global_batch_size=4, rank=0, world_size=1, start_step=0,"
        " steps=2)); print([tuple(batch['clip'].shape) for batch in found])"
    )
    pattern = f"pipe:cat {shards}/train/clips-{{000000..000002}}.tar"
    done = subprocess.run(
        [sys.executable, "-c", code, pattern], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "[(4, 3, 4, 24, 24), (4, 3, 4, 24, 24)]\n"
    assert done.stderr.count("this run cannot be resumed") == 1

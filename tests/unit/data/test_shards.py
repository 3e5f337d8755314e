import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard

from magvit_scale.config import Refusal
from magvit_scale.data import shards as module
from magvit_scale.data.frames import Sample
from magvit_scale.data.shards import Dataset, SampleTable, Shard, load_dataset
from magvit_scale.files import npy_bytes
from magvit_scale.video import VideoError
from magvit_scale.video_bytes import decode_mp4
from tests.unit.data.conftest import video, write_tar


def test_a_table_numbers_the_samples_of_all_shards(shards: Path) -> None:
    dataset = load_dataset(shards / "raw")
    table, samples = SampleTable(dataset, "train"), dataset.samples("train")
    assert len(table) == len(samples) == 16
    assert [table[number].key for number in (15, 0, 7, 6)] == [samples[number].key for number in (15, 0, 7, 6)]
    for number in (-1, 16):
        with pytest.raises(IndexError):
            table[number]


@pytest.mark.parametrize("encoding", ["raw", "h264"])
def test_one_sample_costs_one_sample(shards: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(shards / encoding)
    samples = dataset.samples("train")
    built: list[str] = []

    def counted(**facts: Any) -> Sample:
        built.append(facts["key"])
        return Sample(**facts)

    monkeypatch.setattr(module, "Sample", counted)
    table = SampleTable(dataset, "train")
    for number in (3, 9, 3, 15, 0):
        assert table[number] == samples[number]
    assert built == [samples[number].key for number in (3, 9, 3, 15, 0)]
    assert tuple(table) == samples


def test_a_damaged_line_hinders_only_those_who_ask_for_it(shards: Path, tmp_path: Path) -> None:
    whole = load_dataset(shards / "raw").samples("train")
    folder = edit(shards / "raw", tmp_path / "bad", lambda line: line.update(offset=-1))
    dataset = load_dataset(folder)
    table = SampleTable(dataset, "train")
    assert [table[number].key for number in range(1, 16)] == [sample.key for sample in whole[1:]]
    for _ in range(2):
        with pytest.raises(Refusal, match=r"clips-000000.json: sample .* cannot be in its tar; run data_prep"):
            table[0]
    for read in (lambda: dataset.shard_samples(table.shards[0]), lambda: tuple(table)):
        with pytest.raises(Refusal, match="cannot be in its tar"):
            read()


def test_a_cut_index_is_refused_whichever_sample_is_asked_for(shards: Path, tmp_path: Path) -> None:
    folder = edit(shards / "raw", tmp_path / "bad", dict)
    index = folder / "train/clips-000000.json"
    table = SampleTable(load_dataset(folder), "train")
    for change, expected in ((lambda text: text[:-3], "not JSON"), (lambda text: '{"samples": [{}]}', "1 samples")):
        index.write_text(change(index.read_text()))
        with pytest.raises(Refusal, match=rf"clips-000000.json: {expected}"):
            table[1]


def test_memory_is_flat_over_a_pass_of_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_SAMPLES", 100)
    line = {"label": "", "class_id": -1, "num_frames": 1, "fps": 1.0, "offset": 0, "size": 1}
    listed = []
    for number in range(200):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(b"x")
        samples = [{**line, "key": f"{number}-{place}"} for place in range(20)]
        path.with_suffix(".json").write_text(json.dumps({"samples": samples}))
        listed.append(Shard(path, 20, 1, "", path.with_suffix(".json")))
    table = SampleTable(Dataset(tmp_path, (), 1, None, "h264", "", {"train": tuple(listed)}), "train")
    sizes = []
    for start in (0, 2000):
        tracemalloc.start()
        assert [table[number].key for number in range(start, start + 2000)][-1] == f"{(start + 1999) // 20}-19"
        assert sum(map(len, table._held.values())) <= 100
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[1] < 200_000


def edit(folder: Path, copy: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose first index line is changed."""
    shutil.copytree(folder, copy)
    path = copy / "train/clips-000000.json"
    path.chmod(0o644)
    content = json.loads(path.read_text())
    change(content["samples"][0])
    path.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1}, {"offset": 1 << 62}, {"size": -5}, {"size": 1 << 40}, {"num_frames": 0}, {"num_frames": "9"},
        {"offset": 1.5}, {"key": 3}, {"width": 0}, {"width": 1 << 40}, {"label": None}, {"height": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_is_believed_only_as_far_as_it_can_be_true(
    shards: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = edit(shards / "raw", tmp_path / "bad", lambda line: line.update(change))
    with pytest.raises(Refusal, match=r"clips-000000.json: .*run data_prep.write_shards again"):
        load_dataset(folder).samples("train")


def test_frames_that_an_index_invents_are_an_error_of_the_video(shards: Path, tmp_path: Path) -> None:
    for encoding in ("raw", "h264"):
        folder = edit(shards / encoding, tmp_path / encoding, lambda line: line.update(num_frames=10_000_000))
        dataset = load_dataset(folder)
        with pytest.raises(VideoError):
            dataset.read_video(dataset.samples("train")[0], 0, 25)


def test_damaged_indexes_end_in_one_line(shards: Path, tmp_path: Path) -> None:
    index = Path("train/clips-000000.json")
    for number, content in enumerate([b"", b"{", b"[]", b"[" * 200_000, b"\xff\xfe", b'{"samples": []}', b"null"]):
        folder = tmp_path / str(number)
        shutil.copytree(shards / "raw", folder)
        (folder / index).write_bytes(content)
        with pytest.raises(Refusal, match=r"clips-000000.json: (not JSON|\d+ samples|no samples)") as refusal:
            load_dataset(folder).samples("train")
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400
    (folder / index).unlink()
    with pytest.raises(Refusal, match=r"clips-000000.json: missing"):
        load_dataset(folder).samples("train")


def test_missing_and_cut_shards_end_in_one_line(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(shards / "raw", folder)
    path = folder / "train/clips-000001.tar"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(Refusal, match=r"clips-000001.tar: 700 bytes, expected \d+ bytes"):
        load_dataset(folder).samples("train")
    path.unlink()
    with pytest.raises(Refusal, match=r"clips-000001.tar: missing, expected \d+ bytes"):
        SampleTable(load_dataset(folder), "train")


def test_flipped_bits_are_found_by_the_recorded_checksum(shards: Path) -> None:
    dataset = load_dataset(shards / "h264")
    sample = dataset.samples("train")[0]
    with pytest.raises(VideoError, match="damaged bytes in"):
        dataset.read_video(replace(sample, crc32=1), 0, 4)


def stored(folder: Path, encoding: str, data: bytes, extension: str, **facts: int) -> Dataset:
    """A data set of one video, 12 frames of 24 x 16."""
    tar = write_tar(folder / f"train/{encoding}.tar", [(f"a.{extension}", data)])
    line = {"key": "a", "label": "", "class_id": -1, "num_frames": 12, "fps": 8.0, "offset": 512, "size": len(data)}
    index = {"samples": [{**line, "width": 24, "height": 16, **facts}]}
    tar.with_suffix(".json").write_text(json.dumps(index))
    shard = Shard(tar, 1, tar.stat().st_size, "", tar.with_suffix(".json"))
    return Dataset(folder, (), 16, 8.0, encoding, "", {"train": (shard,)})  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_lossless_frames_of_any_shape_come_back(tmp_path: Path, encoding: str) -> None:
    data = npy_bytes(video(3))
    data = zstandard.ZstdCompressor().compress(data) if encoding == "zstd" else data
    dataset = stored(tmp_path, encoding, data, "npy")
    (sample,) = dataset.samples("train")
    assert np.array_equal(dataset.read_video(sample, 1, 12, 3), video(3)[1:12:3])


def test_a_zstd_bomb_does_not_unfold(tmp_path: Path) -> None:
    bombs = [
        zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        zstandard.ZstdCompressor(write_content_size=False).compress(npy_bytes(video(3))),
        zstandard.ZstdCompressor().compress(npy_bytes(video(3)))[:-9],
        b"no zstd",
    ]
    for number, bomb in enumerate(bombs):
        dataset = stored(tmp_path / str(number), "zstd", bomb, "npy.zst")
        tracemalloc.start()
        with pytest.raises(VideoError, match=r"zstd frame of another size|unreadable zstd"):
            dataset.read_video(dataset.samples("train")[0], 0, 4)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "extension"), [("raw", "npy"), ("h264", "mp4")])
def test_webdataset_reads_the_shards_unchanged(shards: Path, encoding: str, extension: str) -> None:
    dataset = load_dataset(shards / encoding)
    urls = [str(shard.path) for shard in dataset.shards("train")]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    samples = dataset.samples("train")
    assert [item["__key__"] for item in found] == [sample.key for sample in samples]
    for item, sample in zip(found, samples, strict=True):
        frames = dataset.read_video(sample, 0, sample.num_frames)
        if encoding == "h264":
            assert np.array_equal(decode_mp4(item[extension], 0, sample.num_frames), frames)
        else:
            assert item[extension].endswith(frames.tobytes())
        assert json.loads(item["json"])["class_id"] == sample.class_id

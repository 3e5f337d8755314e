import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale.config import ClipsConfig, Refusal, SourceConfig
from magvit_scale.data.sources import fingerprint
from tests.unit.data.conftest import Clips, npy, write_tar


def mixed(clips: Clips, **sources: tuple[Path, float]) -> ClipsConfig:
    made = {name: SourceConfig(shards=str(shards), weight=weight) for name, (shards, weight) in sources.items()}
    return replace(clips(), shards="", sources=made)


def test_a_data_set_that_was_moved_is_the_same_and_one_that_was_written_again_is_not(
    shards: Path, clips: Clips, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shards / "raw", moved)
    before = fingerprint(clips())
    assert fingerprint(clips(shards=str(moved))) == before
    assert fingerprint(clips(num_frames=4, size_px=8, horizontal_flip=False)) == before
    assert fingerprint(clips("h264")) != before
    assert fingerprint(clips(split="test")) != before
    content = json.loads((moved / "dataset.json").read_text())
    (moved / "dataset.json").write_text(json.dumps({**content, "hash": "0" * 64}))
    assert fingerprint(clips(shards=str(moved))) != before
    assert len(before) == 64


def test_every_source_counts_with_its_name_and_weight_in_any_order(shards: Path, clips: Clips) -> None:
    raw, h264 = shards / "raw", shards / "h264"
    before = fingerprint(mixed(clips, a=(raw, 1), b=(h264, 3)))
    assert fingerprint(mixed(clips, b=(h264, 3), a=(raw, 1))) == before
    others = [
        mixed(clips, a=(raw, 1)), mixed(clips, a=(raw, 1), b=(h264, 2)), mixed(clips, a=(h264, 1), b=(raw, 3)),
        mixed(clips, a=(raw, 1), c=(h264, 3)), clips(),
    ]  # fmt: skip
    assert len({before, *map(fingerprint, others)}) == 1 + len(others)


def test_foreign_tars_count_by_names_sizes_and_indexes(clips: Clips, tmp_path: Path) -> None:
    def written(folder: str, *numbers: int, key: str = "") -> str:
        write_tar(tmp_path / folder / "x-0.tar", [(f"{key}{number}.npy", npy(number)) for number in numbers])
        return fingerprint(clips(shards=str(tmp_path / folder)))

    assert written("one", 0, 1) == written("two", 0, 1)
    assert written("three", 0, 1, 2) != written("one", 0, 1)
    assert written("four", 0, 1, key="a") != written("one", 0, 1)


def test_a_stream_counts_by_its_command(clips: Clips) -> None:
    assert fingerprint(clips(shards="pipe:cat a.tar")) == fingerprint(clips(shards="pipe:cat a.tar"))
    assert fingerprint(clips(shards="pipe:cat a.tar")) != fingerprint(clips(shards="pipe:cat b.tar"))


def test_what_is_not_there_has_no_fingerprint(clips: Clips, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no dataset.json"):
        fingerprint(clips(shards=str(tmp_path)))

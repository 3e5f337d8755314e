"""One sample of each rank's first shard."""

import json
import shutil
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.data.first_sample import is_token_shards, read_first_sample, words_on_few_shards
from tests.unit.data.test_token_shards import write as write_tokens


def count_of(folder: Path) -> int:
    return len(json.loads((folder / "dataset.json").read_text())["splits"]["train"])


@pytest.mark.parametrize("encoding", ["raw", "h264"])
def test_clip_shards_are_counted_and_read_by_any_rank(shards: Path, encoding: str) -> None:
    num_shards = count_of(shards / encoding)
    assert num_shards > 1
    assert [read_first_sample(str(shards / encoding), rank) for rank in range(4)] == [num_shards] * 4
    assert not is_token_shards(str(shards / encoding))


def test_a_rank_reads_its_own_shard(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards / "h264", tmp_path / "clips")
    (second,) = (folder / "train").glob("*1.tar")
    second.write_bytes(bytes(second.stat().st_size))
    read_first_sample(str(folder), 0)
    with pytest.raises(Refusal, match=f"^{second}: video .* does not decode: .*; run data_prep.check_shards$"):
        read_first_sample(str(folder), 1)


def test_token_shards_are_counted_and_read_though_one_is_empty(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    (tmp_path / "source.json").write_text("{}")
    assert is_token_shards(str(tmp_path))
    assert [read_first_sample(str(tmp_path), rank) for rank in range(5)] == [3] * 5


def test_token_shards_that_are_not_finished_are_refused(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("{}")
    with pytest.raises(Refusal, match=r"no dataset\.json of token shards"):
        read_first_sample(str(tmp_path), 0)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=rf"^shards={tmp_path}: no dataset\.json; "):
        read_first_sample(str(tmp_path), 0)
    with pytest.raises(Refusal, match=r"^shards=pipe:cat x: a stream can only be read by a run; "):
        read_first_sample("pipe:cat x", 0)


@pytest.mark.parametrize(
    ("num_shards", "num_workers", "words"),
    [
        (8, 2, None),
        (7, 2, "7 shards for 4 ranks x 2 workers: no reader is idle, but several share a file"),
        (4, 0, None),
        (3, 0, "3 shards for 4 ranks x 0 workers: precompute-tokens gives whole shards to ranks and leaves 1 of them"),
    ],
)
def test_few_clip_shards_are_worth_a_warning(num_shards: int, num_workers: int, words: str | None) -> None:
    found = words_on_few_shards(num_shards, 4, num_workers)
    assert len(found) == (words is not None)
    assert all(line.startswith(str(words)) for line in found)

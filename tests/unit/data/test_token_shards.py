import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from magvit_scale.config import Refusal
from magvit_scale.data.order import Order
from magvit_scale.data.token_facts import TokenFacts, token_shard_name
from magvit_scale.data.token_shards import TokenShards, training_batches
from magvit_scale.data.token_writer import is_token_shard_done, write_token_dataset, write_token_shard

FACTS = TokenFacts(
    tokenizer_hash="t",
    tokenizer={"ndim": 3},
    clips_hash="c",
    clips={"split": "train", "num_frames": 8},
    canvases=("z", "FP"),
    rules={"FP": "r"},
    views=3,
    seed=0,
    latent_shape=(2, 3, 4),
    codebook_size=1024,
    classes=("a", "b", "c"),
    num_shards=3,
)


def write(folder: Path, facts: TokenFacts = FACTS) -> tuple[np.ndarray, np.ndarray]:
    """Three shards of 5, 0 and 4 clips with 3 views."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1024, (9, 3, 2, 2, 3, 4)).astype(np.uint16)
    labels = rng.integers(0, 3, 9)
    for number, part in enumerate((slice(0, 5), slice(5, 5), slice(5, 9))):
        keys = [f"video-{index}" for index in range(9)[part]]
        write_token_shard(folder / token_shard_name(number), facts, tokens[part], labels[part], keys)
    write_token_dataset(folder, facts)
    return tokens, labels


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    tokens, labels = write(tmp_path)
    shards = TokenShards.open(tmp_path)
    assert (shards.num_clips, shards.views, shards.num_classes) == (9, 3, 3)
    assert (shards.canvases, shards.latent_shape, shards.tokenizer_hash) == (("z", "FP"), (2, 3, 4), "t")
    assert all(isinstance(part, np.memmap) for part in (shards.tokens[0], shards.tokens[2]))
    assert shards.keys[5] == "video-5"
    found, found_labels = shards.batch([8, 0, 5, 4], [2, 0, 1, 1])
    assert found.dtype == found_labels.dtype == torch.int64
    assert np.array_equal(found.numpy(), tokens[[8, 0, 5, 4], [2, 0, 1, 1]])
    assert np.array_equal(found_labels.numpy(), labels[[8, 0, 5, 4]])


def test_writing_is_deterministic_and_done_is_known(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names[0] == "dataset.json"
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    path = tmp_path / "a" / token_shard_name(0)
    assert is_token_shard_done(path, FACTS)
    os.truncate(path, 100)
    assert not is_token_shard_done(path, FACTS)
    assert not is_token_shard_done(tmp_path / "a" / token_shard_name(7), FACTS)


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    tokens, labels = write(tmp_path)
    (item,) = webdataset.WebDataset(str(tmp_path / token_shard_name(2)), shardshuffle=False).decode()
    assert np.array_equal(item["tokens.npy"], tokens[5:])
    assert np.array_equal(item["labels.npy"], labels[5:])
    assert item["keys.json"] == ["video-5", "video-6", "video-7", "video-8"]


def test_global_batches_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    tokens, labels = write(tmp_path)
    shards, order = TokenShards.open(tmp_path), Order(9, seed=5)

    def run(world_size: int, start_step: int, steps: int) -> list[dict[str, torch.Tensor]]:
        arguments = {
            "seed": 5,
            "global_batch_size": 6,
            "world_size": world_size,
            "start_step": start_step,
            "steps": steps,
        }
        ranks = [training_batches(shards, rank=rank, **arguments) for rank in range(world_size)]
        return [
            {key: torch.cat([part[key] for part in parts]) for key in parts[0]} for parts in zip(*ranks, strict=True)
        ]

    expected = run(1, 0, 30)
    for batch, other in zip(expected[2:], run(3, 2, 28), strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in ("tokens", "label", "position"))
    used = set()
    for batch in expected:
        for row, label, position in zip(batch["tokens"], batch["label"], batch["position"], strict=True):
            index = order.at(int(position))
            (view,) = (view for view in range(3) if np.array_equal(tokens[index, view], row.numpy()))
            assert labels[index] == label
            used.add((index, view))
    assert len(used) == 27
    with pytest.raises(Refusal, match="not a multiple of the 4 ranks"):
        training_batches(shards, seed=0, global_batch_size=6, rank=0, world_size=4, start_step=0, steps=1)


def test_missing_and_truncated_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="magvit precompute-tokens"):
        TokenShards.open(tmp_path)
    with pytest.raises(Refusal, match=r"tokens-000000\.tar: missing, and 2 more"):
        write_token_dataset(tmp_path, FACTS)
    write(tmp_path)
    os.truncate(tmp_path / token_shard_name(2), 700)
    with pytest.raises(Refusal, match=r"tokens-000002\.tar: 700 bytes, expected"):
        TokenShards.open(tmp_path)
    (tmp_path / token_shard_name(2)).unlink()
    with pytest.raises(Refusal, match=r"tokens-000002\.tar: missing"):
        TokenShards.open(tmp_path)


def test_shapes_must_agree(tmp_path: Path) -> None:
    write(tmp_path)
    other = replace(FACTS, canvases=("z",))
    with pytest.raises(ValueError, match="expected"):
        write_token_shard(tmp_path / "x.tar", other, np.zeros((1, *FACTS.clip_shape), np.uint16), np.zeros(1), ["k"])
    with pytest.raises(ValueError, match="expected uint16"):
        write_token_shard(tmp_path / "x.tar", FACTS, np.zeros((1, *FACTS.clip_shape), int), np.zeros(1), ["k"])

import json
import os
import resource
import socket
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from benchmarks.stub_shards import write_stub_tokens
from magvit_scale.config import Refusal
from magvit_scale.data.order import Order
from magvit_scale.data.token_facts import TokenFacts, token_shard_name
from magvit_scale.data.token_shards import TokenShards, draw_views, training_batches
from magvit_scale.data.token_writer import (
    claim_token_folder,
    is_token_shard_done,
    write_token_dataset,
    write_token_shard,
)
from magvit_scale.metrics.tokens import codebook_use

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
    assert [part.shape for part in shards.tokens] == [(number, 3, 2, 2, 3, 4) for number in (5, 0, 4)]
    assert [tar.labels.tolist() for tar in shards.tars] == [labels[:5].tolist(), [], labels[5:].tolist()]
    assert all(np.shares_memory(tar.labels, shards.labels) for tar in (shards.tars[0], shards.tars[2]))
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


def test_shards_hold_no_files_open(tmp_path: Path) -> None:
    """Sixty shards where the process may open eight files more; one holds what its own header says."""
    facts = replace(FACTS, num_shards=60)
    for number in range(60):
        tokens = np.full((1, *FACTS.clip_shape), number, np.uint16)
        write_token_shard(tmp_path / token_shard_name(number), facts, tokens, np.array([number % 3]), [str(number)])
    write_token_dataset(tmp_path, facts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    try:
        shards = TokenShards.open(tmp_path, verify=True)
        tokens, labels = shards.batch(range(60), [number % 3 for number in range(60)])
        assert shards.keys == tuple(map(str, range(60)))
        assert len(os.listdir("/proc/self/fd")) == held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert tokens[:, 1, 1, 2, 3].tolist() == list(range(60))
    assert labels.tolist() == 20 * [0, 1, 2]


def test_more_than_may_be_mapped_ends_in_one_line(tmp_path: Path) -> None:
    """A shard of three gigabytes of holes where the process may map a quarter of one more."""
    write_stub_tokens(tmp_path / "tokens", 1, 3 << 18, ("z", "FP"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 28), hard))
    try:
        with pytest.raises(Refusal) as refusal:
            TokenShards.open(tmp_path / "tokens")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert str(refusal.value).startswith(
        f"{tmp_path / 'tokens' / token_shard_name(0)}: cannot be mapped, expected room for 1 "
    )
    assert "ulimit -v" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_shapes_must_agree(tmp_path: Path) -> None:
    write(tmp_path)
    other = replace(FACTS, canvases=("z",))
    with pytest.raises(ValueError, match="expected"):
        write_token_shard(tmp_path / "x.tar", other, np.zeros((1, *FACTS.clip_shape), np.uint16), np.zeros(1), ["k"])
    with pytest.raises(ValueError, match="expected uint16"):
        write_token_shard(tmp_path / "x.tar", FACTS, np.zeros((1, *FACTS.clip_shape), int), np.zeros(1), ["k"])


def streamed(shards: TokenShards, world_size: int, start_step: int, steps: int) -> list[dict[str, torch.Tensor]]:
    """Global batches of twelve, put together from those of the ranks."""
    told: dict[str, Any] = {"seed": 7, "global_batch_size": 12, "start_step": start_step, "steps": steps}
    ranks = [training_batches(shards, rank=rank, world_size=world_size, **told) for rank in range(world_size)]
    return [
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize(("world_size", "killed_at"), [(1, 1), (2, 5), (4, 64), (12, 65)])
def test_a_resume_with_another_number_of_ranks_gives_the_same_batches(
    tmp_path: Path, world_size: int, killed_at: int
) -> None:
    """Nine clips in batches of twelve: each crosses the border of a pass, and 64 batches are drawn together."""
    write(tmp_path)
    undisturbed = streamed(TokenShards.open(tmp_path), 1, 0, 70)
    resumed = streamed(TokenShards.open(tmp_path), world_size, killed_at, 70 - killed_at)
    for expected, found in zip(undisturbed[killed_at:], resumed, strict=True):
        assert all(found[name].equal(expected[name]) for name in ("tokens", "label", "position"))
    assert [int(batch["position"][0]) for batch in undisturbed] == list(range(0, 840, 12))


def test_a_batch_larger_than_the_set_shows_every_clip(tmp_path: Path) -> None:
    tokens, labels = write(tmp_path)
    (batch,) = training_batches(
        TokenShards.open(tmp_path), seed=0, global_batch_size=18, rank=0, world_size=1, start_step=0, steps=1
    )
    assert batch["tokens"].dtype == torch.uint16
    assert batch["tokens"].shape == (18, 2, 2, 3, 4)
    for half in (batch["tokens"][:9], batch["tokens"][9:]):
        shown = {index for index in range(9) for row in half for view in tokens[index] if np.array_equal(view, row)}
        assert shown == set(range(9))
    assert sorted(batch["label"].tolist()) == sorted([*labels.tolist(), *labels.tolist()])


def test_views_are_drawn_evenly_by_seed_and_position_alone() -> None:
    positions = np.arange(40_000)
    drawn = draw_views(8, 3, positions)
    assert np.abs(np.bincount(drawn, minlength=8) - 5000).max() < 4 * np.sqrt(5000)
    pairs = np.bincount(8 * drawn[:-1] + drawn[1:], minlength=64)  # neighbours know nothing of each other
    assert np.abs(pairs - 625).max() < 4.5 * np.sqrt(625)
    assert np.array_equal(draw_views(8, 3, positions[[7, 39_999, 5]]), drawn[[7, 39_999, 5]])
    assert np.mean(draw_views(8, 4, positions) == drawn) < 0.14
    assert not draw_views(1, 3, positions).any()
    # Runs that were started before an update must go on with the views they began with.
    assert draw_views(8, 3, np.array([0, 1, 2, 3, 4, 10**12])).tolist() == [5, 0, 2, 3, 1, 4]


def test_a_pass_keeps_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    batches = training_batches(
        TokenShards.open(tmp_path), seed=0, global_batch_size=64, rank=0, world_size=1, start_step=0, steps=400
    )
    for _ in range(140):
        next(batches)
    tracemalloc.start()
    sizes = []
    for _ in range(3):
        for _ in range(64):
            next(batches)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes) - sizes[0] < 100_000


def test_who_is_first_wins(tmp_path: Path) -> None:
    """Two launches on one folder may write the same shard; what is published does not change any more."""
    tokens, labels = write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_token_shard(tmp_path / token_shard_name(0), FACTS, tokens[:5] + 1, labels[:5], list("abcde"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_what_a_dead_writer_left_is_removed_and_a_living_ones_work_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = {name: tmp_path / "unfinished" / f"{socket.gethostname()}-{name}" for name in (ended.pid, os.getpid())}
    left["elsewhere"] = tmp_path / "unfinished" / "another-host-1"
    for folder in left.values():
        folder.mkdir(parents=True)
        (folder / "tokens-000000.tar").touch()
    (tmp_path / "source.json").write_text(json.dumps(FACTS.as_json()))
    claim_token_folder(tmp_path, FACTS)
    assert [folder.exists() for folder in left.values()] == [False, True, True]


def test_a_folder_belongs_to_one_kind_of_tokens(tmp_path: Path) -> None:
    claim_token_folder(tmp_path, FACTS)
    claim_token_folder(tmp_path, FACTS)
    other = replace(FACTS, clips={"split": "test", "num_frames": 8})
    with pytest.raises(Refusal, match=r"source.json has clips.split=train, this run clips.split=test; give another"):
        claim_token_folder(tmp_path, other)
    for text in ("", "[" * 100_000, "7"):
        (tmp_path / "source.json").write_text(text)
        with pytest.raises(Refusal, match=r"source.json.*; give another output or delete it"):
            claim_token_folder(tmp_path, FACTS)


def test_ids_beyond_the_codebook_and_codes_in_use(tmp_path: Path) -> None:
    tokens, _ = write(tmp_path)
    use = codebook_use(torch.from_numpy(tokens[:, :, 0]), 1024)
    found = TokenShards.open(tmp_path).codebook
    assert found == {"used": int((use.counts > 0).sum()), "perplexity": pytest.approx(use.perplexity, abs=1e-3)}
    with pytest.raises(Refusal, match=f"id {tokens[:5, :, 0].max()}, the codebook has 64; delete it"):
        write_token_dataset(tmp_path, replace(FACTS, codebook_size=64))


@pytest.mark.parametrize(("index", "view"), [(9, 0), (-1, 0), (0, 3), (0, -1)])
def test_what_is_not_there_is_not_read(tmp_path: Path, index: int, view: int) -> None:
    write(tmp_path)
    with pytest.raises(IndexError, match=r"expected clips in \[0, 9\) and views in \[0, 3\)"):
        TokenShards.open(tmp_path).batch([0, index], [0, view])

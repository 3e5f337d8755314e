"""Token batches: ours, indexing a bare np.memmap, and WebDataset on packed and on single clips."""

from pathlib import Path

import numpy as np
import webdataset

from benchmarks.measure import Measured, compare
from magvit_scale.data.token_facts import TokenFacts, token_shard_name
from magvit_scale.data.token_shards import TokenShards, training_batches
from magvit_scale.data.token_writer import write_token_dataset, write_token_shard

NUM_CLIPS, BATCH_SIZE, LATENT_SHAPE = 40_000, 256, (4, 16, 16)
MANY_SHARDS = 208
"""As many as UCF-101 has."""


def measure_tokens(folder: Path) -> dict[str, Measured]:
    """CPU time per clip, one view, z alone; a tenth of the clips where each is a member of its own."""
    for num_shards in (1, MANY_SHARDS):
        _write(folder / str(num_shards), num_shards)
    rng, steps = np.random.default_rng(0), NUM_CLIPS // BATCH_SIZE
    rng.integers(0, 1024, (NUM_CLIPS, *LATENT_SHAPE), dtype=np.uint16).tofile(folder / "bare.bin")
    bare = np.memmap(folder / "bare.bin", np.uint16, mode="r", shape=(NUM_CLIPS, *LATENT_SHAPE))
    order = rng.permutation(NUM_CLIPS)
    with webdataset.TarWriter(str(folder / "single.tar"), mtime=0) as tar:
        for index in range(NUM_CLIPS // 10):
            tar.write({"__key__": f"{index:06d}", "tokens.npy": bare[index], "label.cls": 0})
    opened = {num_shards: TokenShards.open(folder / str(num_shards)) for num_shards in (1, MANY_SHARDS)}

    def stream(num_shards: int) -> int:
        batches = training_batches(
            opened[num_shards], seed=0, global_batch_size=BATCH_SIZE, rank=0, world_size=1, start_step=0, steps=steps
        )
        return sum(len(batch["tokens"]) for batch in batches)

    def gather() -> int:
        return sum(len(bare[order[start : start + BATCH_SIZE]]) for start in range(0, steps * BATCH_SIZE, BATCH_SIZE))

    def packed() -> int:
        paths = [str(tar.path) for tar in opened[MANY_SHARDS].tars]
        samples = webdataset.WebDataset(paths, shardshuffle=False).decode()
        return sum(len([clip.copy() for clip in sample["tokens.npy"]]) for sample in samples)

    def single() -> int:
        return sum(1 for _ in webdataset.WebDataset(str(folder / "single.tar"), shardshuffle=False).decode())

    return compare(
        {
            "bare memmap gather": gather,
            "token shards, 1 shard": lambda: stream(1),
            f"token shards, {MANY_SHARDS} shards": lambda: stream(MANY_SHARDS),
            "WebDataset, packed shards, a copy of each clip": packed,
            "WebDataset, a member for each clip": single,
        }
    )


def _write(folder: Path, num_shards: int) -> None:
    facts = TokenFacts(
        tokenizer_hash="none",
        tokenizer={},
        clips_hash="none",
        clips={"split": "train"},
        canvases=("z",),
        rules={},
        views=1,
        seed=0,
        latent_shape=LATENT_SHAPE,
        codebook_size=1024,
        classes=("all",),
        num_shards=num_shards,
    )
    rng = np.random.default_rng(0)
    for number, indices in enumerate(np.array_split(np.arange(NUM_CLIPS), num_shards)):
        tokens = rng.integers(0, 1024, (len(indices), *facts.clip_shape), dtype=np.uint16)
        labels, keys = np.zeros(len(indices), np.int64), [str(index) for index in indices]
        write_token_shard(folder / token_shard_name(number), facts, tokens, labels, keys)
    write_token_dataset(folder, facts)

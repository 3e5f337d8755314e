"""Whether shards can be read at all: opened as training opens them, and one sample of them read."""

from pathlib import Path

from magvit_scale.config import Refusal
from magvit_scale.data.shards import load_dataset
from magvit_scale.data.sources import is_stream
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.video import VideoError

TRAIN = "train"


def is_token_shards(folder: str) -> bool:
    """Whether a folder is one that `magvit precompute-tokens` fills."""
    return Path(folder, "source.json").is_file()


def read_first_sample(shards: str, rank: int) -> int:
    """Reads the first sample of a rank's first shard: clip shards, of split train where there is one, or token shards.

    Args:
        shards: as clips.shards, or a folder of token shards.
        rank: reads shard `rank`, counted around.

    Returns:
        the number of shards.

    Raises:
        Refusal: they are missing, damaged, empty or a stream, or the sample does not decode.
    """
    if is_stream(shards):
        raise Refusal(f"shards={shards}: a stream can only be read by a run; leave it out here")
    return _read_tokens(shards, rank) if is_token_shards(shards) else _read_clip(shards, rank)


def words_on_few_shards(num_shards: int, num_ranks: int, num_workers: int) -> list[str]:
    """A warning where clip shards are fewer than those who read them. Training takes samples by their place, so nobody
    is without work as in a reader that deals out whole shards; token shards lie in memory.

    Args:
        num_shards: of the split.
        num_ranks: processes.
        num_workers: loader processes per rank; 0 reads in the rank itself.
    """
    if num_shards >= num_ranks * max(1, num_workers):
        return []
    idle = num_ranks - num_shards
    effect = f"precompute-tokens gives whole shards to ranks and leaves {idle} of them idle" if idle > 0 else (
        "no reader is idle, but several share a file, which a file system may serve from one disk"
    )  # fmt: skip
    return [
        f"{num_shards} shards for {num_ranks} ranks x {num_workers} workers: {effect}; a smaller videos_per_shard of "
        "data_prep.write_shards makes more"
    ]


def _read_tokens(folder: str, rank: int) -> int:
    opened = TokenShards.open(folder)
    counts = [len(tar.labels) for tar in opened.tars]
    opened.batch([sum(counts[: rank % len(counts)]) % opened.num_clips], [0])
    return len(counts)


def _read_clip(folder: str, rank: int) -> int:
    dataset = load_dataset(folder)
    shards = dataset.shards(TRAIN if TRAIN in dataset.splits else next(iter(dataset.splits), TRAIN))
    filled = [shard for shard in shards if shard.count]
    if not filled:
        raise Refusal(f"{dataset.folder}: no videos in its shards; run data_prep.write_shards again")
    sample = dataset.shard_samples(filled[rank % len(filled)])[0]
    try:
        dataset.read_video(sample, 0, 1)
    except VideoError as error:
        found = f"video {sample.key} does not decode: {error}"
        raise Refusal(f"{sample.shard}: {found}; run data_prep.check_shards") from error
    return len(shards)

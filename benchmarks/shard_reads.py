"""Who reads which shard when, out of an order and a division over ranks and workers. Pure numpy."""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from magvit_scale.data.order import Numbers


def step_positions(step: int, rank: int, world: int, per_rank: int) -> Numbers:
    """Positions of a rank's part of a global batch, as data/clips.py and data/token_shards.py deal them out."""
    return (step * world + rank) * per_rank + np.arange(per_rank)


def moment_positions(step: int, world: int, per_rank: int, workers: int, place: int) -> Numbers:
    """Positions that all workers of all ranks read at one moment, 'workers world': worker w of every rank is at sample
    `place` of its part of step + w.
    """
    steps, ranks = step + np.arange(workers)[:, None], np.arange(world)[None]
    return (steps * world + ranks) * per_rank + place


def readers(shards: Numbers) -> Numbers:
    """For every shard that is read, by how many."""
    return np.unique(shards, return_counts=True)[1]


def index_reads(shards: Iterable[int], held: int) -> int:
    """How often a reader that keeps the indexes of the `held` shards used last must read one."""
    kept: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for shard in shards:
        reads += shard not in kept
        kept[shard] = None
        kept.move_to_end(shard)
        if len(kept) > held:
            kept.popitem(last=False)
    return reads


def is_each_once(numbers: Numbers, first: int, end: int) -> bool:
    """Whether these are the whole numbers of [first, end), each exactly once."""
    if len(numbers) != end - first or numbers.min() < first or numbers.max() >= end:
        return False
    return bool((np.bincount(numbers - first, minlength=end - first) == 1).all())

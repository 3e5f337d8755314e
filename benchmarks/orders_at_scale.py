"""The orders of 10^7 samples as 1,024 ranks x 8 workers walk through them: each sample taken once, who reads what."""

import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks.shard_reads import is_each_once, moment_positions, readers, step_positions
from benchmarks.stub_shards import VIDEO_BYTES
from magvit_scale.data.mixture import Mixture
from magvit_scale.data.order import Numbers, Order, WindowedOrder

NUM_SHARDS, PER_SHARD, TOKEN_SHARDS = 20_000, 500, 10_000
NUM_SAMPLES = NUM_SHARDS * PER_SHARD
WORLD, WORKERS, PER_RANK, RANKS_PER_NODE = 1024, 8, 4, 8
STEP, SEED, PASS = 10**6, 0, 3
MODELS = {"clips": "3D-VQ-L", "tokens": "BERT-L"}
WINDOWS = (None, 8, 128, 1024)
MOMENTS, NODE_STEPS, NUM_WINDOWS, MIXED = 20, 100, 20, 10**5


def window_name(window: int | None) -> str:
    """Of a row."""
    return "clips, window null" if window is None else f"clips, window {window:,}"


def model_step_s(kind: str) -> float:
    """Seconds of a step of who reads `clips` or `tokens`, by the model of benchmarks/at_scale.py."""
    figures = json.loads((Path(__file__).parent / "results" / "scale.json").read_text())["figures"]
    row = figures["A step (model)"][f"{MODELS[kind]}, {PER_RANK} per GPU, 1,024 GPUs"]
    return float(row["step, ms"]) / 1e3


def each_once(dealt: Numbers) -> dict[str, str]:
    """What was looked at, and whether it held.

    Args:
        dealt: the positions that the token reader gives all ranks in step `STEP`.
    """
    windowed, first = WindowedOrder([PER_SHARD] * NUM_SHARDS, 8, SEED), STEP * WORLD * PER_RANK
    shards = np.array(list(itertools.islice(windowed.shards_ahead(PASS * NUM_SAMPLES), NUM_SHARDS)))
    checks = {
        f"window null, and tokens: all {NUM_SAMPLES:,} positions of a pass": _pass_is_whole(Order(NUM_SAMPLES, SEED)),
        f"window 8: all {NUM_SHARDS:,} shards of a pass": is_each_once(shards, 0, NUM_SHARDS),
        f"window 8: the samples of {NUM_WINDOWS} of its {NUM_SHARDS // 8:,} windows": _windows_are_whole(windowed),
        f"tokens: what {WORLD:,} ranks are dealt in step 10^6": is_each_once(dealt, first, first + WORLD * PER_RANK),
        f"two sources, 7 : 3: each one's own places in {MIXED:,} positions": _mixture_is_whole(),
    }
    return {name: "each once" if holds else "NOT EACH ONCE" for name, holds in checks.items()}


def _pass_is_whole(order: Order) -> bool:
    parts = np.array_split(np.arange(NUM_SAMPLES) + PASS * NUM_SAMPLES, 40)
    return is_each_once(np.concatenate([order.many(part) for part in parts]), 0, NUM_SAMPLES)


def _windows_are_whole(order: WindowedOrder) -> bool:
    """Whether each window's positions are the samples of exactly its shards."""
    size = order.window * PER_SHARD
    for window in np.linspace(0, NUM_SHARDS // order.window - 1, NUM_WINDOWS, dtype=int).tolist():
        start = PASS * NUM_SAMPLES + window * size
        shards = sorted(itertools.islice(order.shards_ahead(start), order.window))
        expected = np.concatenate([np.arange(PER_SHARD) + shard * PER_SHARD for shard in shards])
        if not np.array_equal(np.sort(order.many(np.arange(start, start + size))), expected):
            return False
    return True


def _mixture_is_whole() -> bool:
    mixture = Mixture([7, 3])
    taken = np.array([mixture.at(position) for position in range(MIXED)])
    places = [taken[taken[:, 0] == source, 1] for source in (0, 1)]
    return all(
        is_each_once(own, 0, share) for own, share in zip(places, (7 * MIXED // 10, 3 * MIXED // 10), strict=True)
    )


def who_reads() -> dict[str, dict[str, str]]:
    """A row per window, and one for tokens."""
    counts = [PER_SHARD] * NUM_SHARDS
    rows = {
        window_name(window): _reading(
            Order(NUM_SAMPLES, SEED) if window is None else WindowedOrder(counts, window, SEED), PER_SHARD, "clips"
        ) | {"GB of two windows": "-" if window is None else f"{2 * window * PER_SHARD * VIDEO_BYTES / 1e9:,.0f}"}
        for window in WINDOWS
    }  # fmt: skip
    tokens = _reading(Order(NUM_SAMPLES, SEED), NUM_SAMPLES // TOKEN_SHARDS, "tokens")
    return rows | {"tokens": tokens | {"GB of two windows": "-"}}


def _reading(order: Order, per_shard: int, kind: str) -> dict[str, str]:
    """How reads spread over shards from step 10^6 on; tokens are read by the ranks themselves."""
    step = order.many(step_positions(STEP, 0, 1, WORLD * PER_RANK)) // per_shard
    workers = 1 if kind == "tokens" else WORKERS
    at_once = [
        readers(order.many(moment_positions(STEP + moment, WORLD, PER_RANK, workers, moment % PER_RANK).ravel())
                // per_shard) for moment in range(MOMENTS)
    ]  # fmt: skip
    node = _node_shards(order, per_shard)
    taken = PER_RANK * RANKS_PER_NODE
    return {
        "shards of a step": f"{len(np.unique(step)):,}",
        "most samples of a step in one": f"{readers(step).max():,}",
        "readers of one at a time, mean": f"{np.mean([each.mean() for each in at_once]):.1f}",
        "most": f"{max(each.max() for each in at_once):,}",
        f"shards of a node in {NODE_STEPS} steps": f"{len(node):,}",
        "samples in them over those it takes": f"{len(node) * per_shard / (NODE_STEPS * taken):,.0f}",
        "reads/s per node at the model's step": f"{taken / model_step_s(kind):,.0f}",
    }


def _node_shards(order: Order, per_shard: int) -> Numbers:
    """All shards that the ranks of one node read in some steps."""
    positions = [
        step_positions(STEP + step, 0, WORLD // RANKS_PER_NODE, PER_RANK * RANKS_PER_NODE) for step in range(NODE_STEPS)
    ]
    return np.unique(order.many(np.concatenate(positions)) // per_shard)

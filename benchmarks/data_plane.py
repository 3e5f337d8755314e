"""The data of 1,024 ranks x 8 workers on one machine: `python -m benchmarks.data_plane`, a minute of one core.

The real order, tables and token reader on 10^7 samples in 20,000 shards whose contents are holes
(benchmarks/stub_shards.py). Only reading and decoding of videos is left out; benchmarks/data.py measures those.
"""

import ctypes
import errno
import gc
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import cpu_seconds, resident_mb, write_results
from benchmarks.orders_at_scale import (
    NUM_SAMPLES,
    NUM_SHARDS,
    PER_RANK,
    PER_SHARD,
    RANKS_PER_NODE,
    SEED,
    STEP,
    TOKEN_SHARDS,
    WORKERS,
    WORLD,
    each_once,
    model_step_s,
    who_reads,
    window_name,
)
from benchmarks.shard_reads import index_reads, step_positions
from benchmarks.stub_shards import VIDEO_BYTES, write_stub_clips, write_stub_tokens
from magvit_scale.config import ClipsConfig
from magvit_scale.data.order import Numbers
from magvit_scale.data.shards import MAX_HELD_SAMPLES
from magvit_scale.data.sources import Source, open_sources
from magvit_scale.data.token_shards import TokenShards, training_batches

RESULTS = Path(__file__).parent / "results"
OUTPUT = RESULTS / "data_plane.json"
WINDOWS, CANVASES = (None, 8), ("z", "FP")
NOTE = f"""{NUM_SAMPLES:,} samples in {NUM_SHARDS:,} clip shards or {TOKEN_SHARDS:,} token shards; {WORLD:,} ranks x
{WORKERS} workers, {PER_RANK} samples per rank and step, {RANKS_PER_NODE} ranks per node. The shards are stubs: indexes,
headers and labels are real, videos and tokens are holes. CPU-s of one core, everything in the page cache. Window:
clips.shuffle_window, null shuffles all. A step takes {WORLD * PER_RANK:,} samples and a window of 8 shards holds
{8 * PER_SHARD:,}: so all ranks are in the same few shards at once, and a node of a remote data set fetches every shard
for a hundredth of its samples."""


def main() -> None:
    """Measures everything and writes results/data_plane.json."""
    groups: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        clips, tokens = Path(name, "clips"), Path(name, "tokens")
        write_stub_clips(clips, NUM_SHARDS, PER_SHARD)
        write_stub_tokens(tokens, TOKEN_SHARDS, NUM_SAMPLES // TOKEN_SHARDS, CANVASES)
        rows = {window_name(window): open_clips(clips, window) for window in WINDOWS}
        groups["Opening, one rank"] = rows | {"tokens": open_tokens(tokens)}
        groups["Clips: from a position to the place of its video, one worker"] = {
            window_name(window): locate(clips, window) for window in WINDOWS
        }
        groups["Every sample once"] = each_once(_dealt(tokens))
    groups["Who reads which shard"] = who_reads()
    write_results(OUTPUT, "Data of 1,024 ranks", "python -m benchmarks.data_plane", groups, NOTE)
    for heading, group in groups.items():
        sys.stdout.write(f"{heading}\n" + "".join(f"  {name}: {row}\n" for name, row in group.items()))


# ----------------------------------------------------------------------------------------------------------------------
# Opening


def open_clips(folder: Path, window: int | None) -> dict[str, str]:
    """What a rank pays before its first clip, and for going to step 10^6."""
    row, (source,) = opened(lambda: open_sources(_config(folder, window), SEED))
    row["with 1,024 files at most"] = _with_few_files(lambda: open_sources(_config(folder, window), SEED))
    begun = cpu_seconds()
    source.order.at(STEP * WORLD * PER_RANK)
    return row | {"to step 10^6, CPU-ms": f"{1e3 * (cpu_seconds() - begun):.1f}"}


def open_tokens(folder: Path) -> dict[str, str]:
    """The same of token shards."""
    row, shards = opened(lambda: _touched(TokenShards.open(folder)))
    row["with 1,024 files at most"] = _with_few_files(lambda: TokenShards.open(folder))
    begun = cpu_seconds()
    next(_token_batches(shards, rank=0))
    return row | {"to step 10^6, CPU-ms": f"{1e3 * (cpu_seconds() - begun):.1f}"}


def opened(build: Callable[[], Any]) -> tuple[dict[str, str], Any]:
    """What a call costs and holds, and what it gives."""
    before, files, begun = _mb_in_use(), _num_files(), cpu_seconds()
    found = build()
    seconds = cpu_seconds() - begun
    row = {
        "CPU-s": f"{seconds:.2f}", "MB held": f"{_mb_in_use() - before:.0f}", "files held": f"{_num_files() - files}"
    }  # fmt: skip
    return row, found


def _mb_in_use() -> float:
    """Resident, without what is free but has not been given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mb()


def _touched(shards: TokenShards) -> TokenShards:
    """After one batch, which makes what is made once."""
    next(_token_batches(shards, rank=0))
    return shards


def _token_batches(shards: TokenShards, rank: int) -> Any:
    return training_batches(
        shards, seed=SEED, global_batch_size=WORLD * PER_RANK, rank=rank, world_size=WORLD, start_step=STEP, steps=1
    )


def _with_few_files(build: Callable[[], Any]) -> str:
    """Whether it opens under the limit of open files that most systems begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_num_files() + 1024, hard))
    try:
        build()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return f"OSError: {error.strerror}"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return "opens"


def _dealt(folder: Path) -> Numbers:
    """The positions that all ranks are dealt in step 10^6."""
    shards = TokenShards.open(folder)
    return np.concatenate([next(_token_batches(shards, rank))["position"].numpy() for rank in range(WORLD)])


# ----------------------------------------------------------------------------------------------------------------------
# Finding videos


def locate(folder: Path, window: int | None) -> dict[str, str]:
    """What worker 0 of a rank pays per clip in some hundred of its batches, a new worker's first ones included."""
    (source,) = open_sources(_config(folder, window), SEED)
    steps = range(STEP, STEP + WORKERS * 150, WORKERS)
    positions = np.concatenate([step_positions(step, WORLD // 2, WORLD, PER_RANK) for step in steps])
    before, begun = _mb_in_use(), cpu_seconds()
    shards = [_shard_of(source, int(position)) for position in positions]
    seconds = (cpu_seconds() - begun) / len(positions)
    reads = index_reads(shards, MAX_HELD_SAMPLES // PER_SHARD) / len(positions)
    index_kb = source.table.shards[0].index.stat().st_size / 1e3
    kb = VIDEO_BYTES / 1e3 + reads * index_kb
    return {
        "CPU-ms per clip": f"{1e3 * seconds:.2f}",
        "beside decoding it (results/data.json)": f"{1e3 * seconds / _decode_ms():.0%}",
        "indexes read per clip": f"{reads:.2f}",
        "kB read per clip": f"{kb:.0f}",
        "of it indexes": f"{reads * index_kb / kb:.0%}",
        "MB/s per node at the model's step": f"{kb / 1e3 * PER_RANK * RANKS_PER_NODE / model_step_s('clips'):.0f}",
        "MB held by the worker": f"{_mb_in_use() - before:.0f}",
    }


def _shard_of(source: Source, position: int) -> int:
    source.sample(position)
    return source.order.at(position) // PER_SHARD


def _decode_ms() -> float:
    figures = json.loads((RESULTS / "data.json").read_text())["figures"]
    return float(next(group for name, group in figures.items() if name.startswith("Clips of"))["clips"]["ms_per_item"])


def _config(folder: Path, window: int | None) -> ClipsConfig:
    return ClipsConfig(shards=str(folder), shuffle_window=window, num_workers=WORKERS)


def _num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()

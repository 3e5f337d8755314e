"""The data side against its peers: `python -m benchmarks.data`, about three minutes of one core.

Sharding beside the bare ffmpeg command and video2dataset's calls; clips beside a bare decoding loop and WebDataset;
stored bytes beside WebDataset; tokens beside a bare gather and WebDataset; the order at 10^8 samples; memory over a
pass. Videos of MAGVIT_TEST_VIDEOS where it is set, else the embedded shapes.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.clip_streams import measure_clips, measure_memory, measure_reads, write_clip_shards
from benchmarks.measure import Measured, compare, write_results
from benchmarks.sharding import measure_sharding
from benchmarks.token_streams import measure_tokens
from magvit_scale.data.order import Order

OUTPUT = Path(__file__).parent / "results" / "data.json"
NUM_SAMPLES = 10**8


def main() -> None:
    """Measures everything and writes results/data.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_clip_shards(folder / "clips")
        groups: dict[str, Mapping[str, Any]] = {
            "Sharding: one video to 128 px, 25 fps, H.264": measure_sharding(folder / "sharding"),
            "Clips of 16 x 128 x 128 from shards, batches of 16": measure_clips(shards),
            "Stored videos read, not decoded": measure_reads(shards),
            "Token clips of 4 x 16 x 16, batches of 256, shuffled": measure_tokens(folder / "tokens"),
            "Any place of an order of 10^8 samples": measure_seek(),
            "Memory": measure_memory(shards),
        }
    write_results(OUTPUT, "Data", "make bench-data", groups)
    for heading, group in groups.items():
        sys.stdout.write(f"{heading}\n" + "".join(f"  {name}: {_line(value)}\n" for name, value in group.items()))


def measure_seek() -> dict[str, Measured]:
    """A new order and one place of it, as a resumed run needs it."""

    def seek() -> int:
        for position in range(0, 5 * NUM_SAMPLES, NUM_SAMPLES // 10 + 7):
            Order(NUM_SAMPLES, seed=position).at(position)
        return 50

    return compare({"new order, one place": seek})


def _line(value: Any) -> str:
    if isinstance(value, Measured):
        spread = f"{value.lowest:.4g} - {value.highest:.4g}"
        return f"{value.ms_per_item:.4g} ms ({spread}), {value.items_per_second:,.0f}/s, x {value.ratio:.3f}"
    return str(value)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

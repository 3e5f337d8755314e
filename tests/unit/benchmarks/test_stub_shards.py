"""Stubs are opened by the real readers, and take no room."""

from pathlib import Path

import numpy as np

from benchmarks.stub_shards import VIDEO_BYTES, write_stub_clips, write_stub_tokens
from magvit_scale.config import ClipsConfig
from magvit_scale.data.sources import open_sources
from magvit_scale.data.token_shards import TokenShards


def test_clip_stubs(tmp_path: Path) -> None:
    write_stub_clips(tmp_path / "clips", num_shards=3, num_samples=4)
    (source,) = open_sources(ClipsConfig(shards=str(tmp_path / "clips")))
    found = [source.sample(position) for position in range(12)]
    assert len({(sample.shard, sample.key) for sample in found}) == 12
    assert {sample.size for sample in found} == {VIDEO_BYTES}
    assert max(sample.offset for sample in found) == 512 + 3 * (VIDEO_BYTES + 1024)
    assert sum(path.stat().st_blocks for path in (tmp_path / "clips" / "train").glob("*.tar")) * 512 < VIDEO_BYTES


def test_token_stubs(tmp_path: Path) -> None:
    write_stub_tokens(tmp_path / "tokens", num_shards=2, num_clips=50, canvases=("z", "FP"))
    shards = TokenShards.open(tmp_path / "tokens")
    assert shards.num_clips == 100
    assert shards.keys[49:52] == ("49", "0", "1")
    (tokens,) = shards.gather(np.array([[99, 0]]), np.array([[0, 0]]))
    assert tokens.shape == (2, 2, 4, 16, 16)
    assert not tokens.any()
    used = sum(path.stat().st_blocks for path in (tmp_path / "tokens").glob("*.tar")) * 512
    assert used < 50 * 2 * 2 * 1024  # the tokens of one shard

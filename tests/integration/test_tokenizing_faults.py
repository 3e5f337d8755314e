"""Tokenizing that is killed, meets a full disk or has nothing to do ends as tokenizing that was left in peace."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from magvit_scale import precompute_tokens
from magvit_scale.config import Refusal
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.training import distributed
from tests.integration.conftest import LAUNCHER_VARIABLES
from tests.integration.struck_tokenizer import contents
from tests.tiny_tokens import NUM_SHARDS, NUM_VIDEOS, arguments, write_clips, write_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Clip shards and a tokenizer."""
    folder = tmp_path_factory.mktemp("sources")
    return write_clips(folder), write_tokenizer(folder / "tokenizer")


@pytest.fixture(autouse=True)
def _left_as_found() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    yield
    distributed.stop()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_fifty_kills_and_three_launches_at_once_leave_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.struck_tokenizer", str(tmp_path), "50", "0"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    happened = json.loads(ended.stdout.splitlines()[-1])
    assert happened["kills"] >= 50
    assert happened["rounds"] > 1
    assert len(TokenShards.open(tmp_path / "together", verify=True).keys) == NUM_VIDEOS


def test_a_full_disk_loses_nothing_that_is_complete(sources: tuple[Path, Path], tmp_path: Path) -> None:
    told, undisturbed = arguments(*sources, tmp_path / "full"), tmp_path / "undisturbed"
    precompute_tokens.main(arguments(*sources, undisturbed))
    precompute_tokens.main(told)
    names = [f"tokens-{number:06d}.{end}" for number in (0, 2) for end in ("tar", "json")]
    for lost in ("dataset.json", "source.json", *names):
        (tmp_path / "full" / lost).unlink()
    before = contents(tmp_path / "full")
    with largest_file(4096), pytest.raises(OSError, match="too large"):
        precompute_tokens.main(told)
    found = contents(tmp_path / "full")
    assert {name: content for name, content in found.items() if name != "source.json"} == before
    precompute_tokens.main(told)
    assert contents(tmp_path / "full") == contents(undisturbed)


@pytest.mark.parametrize(("split", "world_size"), [("train", 8), ("test", 3)])
def test_more_processes_than_shards(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, world_size: int
) -> None:
    """Those without a shard have nothing to do, and the set is the one that a single process makes."""
    clips, tokenizer = sources
    alone, shared = (arguments(clips, tokenizer, tmp_path / name, f"clips.split={split}") for name in ("1", "n"))
    precompute_tokens.main(alone)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    for rank in reversed(range(world_size)):  # the main rank, which ends the work, last
        ranks = distributed.Ranks(rank, world_size, torch.device("cpu"))
        monkeypatch.setattr(distributed, "start", lambda ranks=ranks: ranks)
        precompute_tokens.main(shared)
        done = len(list((tmp_path / "n").glob("*.tar")))
        assert done == sum(number % world_size >= rank for number in range(NUM_SHARDS))
    assert contents(tmp_path / "n") == contents(tmp_path / "1")


def test_a_rank_that_is_missing_leaves_no_data_set(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "start", lambda: distributed.Ranks(0, 2, torch.device("cpu")))
    with pytest.raises(Refusal, match=r"tokens-000001.tar: missing, and 1 more; run magvit precompute-tokens again"):
        precompute_tokens.main(arguments(*sources, tmp_path / "half"))
    with pytest.raises(Refusal, match=r"no dataset.json of token shards"):
        TokenShards.open(tmp_path / "half")


def test_a_split_without_videos(sources: tuple[Path, Path], tmp_path: Path) -> None:
    clips, tokenizer = sources
    empty = json.loads((clips / "dataset.json").read_text())
    empty["splits"]["train"] = []
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "dataset.json").write_text(json.dumps(empty))
    with pytest.raises(Refusal, match="the clip shards hold no videos in split train, so there are no tokens"):
        precompute_tokens.main(arguments(tmp_path / "clips", tokenizer, tmp_path / "out"))

"""A trace holds the steps that were asked for, under their numbers, and no others; it changes no result."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from magvit_scale.training import profiling
from magvit_scale.training.profiling import Profile


def train(folder: Path, steps: tuple[int, int] | None, start: int, end: int, rank: int = 0) -> list[Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    with Profile(folder, rank, steps, start) as profile:
        for step in range(start + 1, end + 1):
            with record_function(f"marked {step}"):
                layer(torch.rand(2, 3)).square().sum().backward()
                optimizer.step()
            profile.step_done()
    return [*layer.state_dict().values(), torch.get_rng_state()]


def traced(folder: Path, word: str, rank: int = 0) -> list[str]:
    with gzip.open(folder / f"rank_{rank:05d}.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return sorted({event["name"] for event in events if event["name"].startswith(word)})


@pytest.mark.parametrize(
    ("steps", "start", "end", "expected"),
    [
        ((3, 4), 0, 6, [3, 4]),
        ((1, 2), 0, 4, [1, 2]),
        ((2, 2), 0, 4, [2]),
        ((3, 5), 3, 6, [4, 5]),
        ((3, 9), 0, 4, [3, 4]),
    ],
    ids=["in the middle", "from the first", "one step", "resumed within", "ended within"],
)
def test_the_steps_of_a_trace(
    tmp_path: Path, steps: tuple[int, int], start: int, end: int, expected: list[int]
) -> None:
    train(tmp_path, steps, start, end)
    assert traced(tmp_path, "marked") == [f"marked {step}" for step in expected]
    assert {f"ProfilerStep#{step}" for step in expected} <= set(traced(tmp_path, "ProfilerStep"))


def test_every_rank_writes_its_trace_and_its_ten_hottest_operators(tmp_path: Path) -> None:
    train(tmp_path / "profile", (1, 1), 0, 1, rank=12)
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["rank_00012.json.gz", "rank_00012.txt"]
    rows = (tmp_path / "profile" / "rank_00012.txt").read_text().split("\n-")[-2].splitlines()[1:]
    shares = [float(row.split("%")[0].split()[-1]) for row in rows]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("steps", "start"), [(None, 0), ((3, 4), 4), ((9, 9), 0)], ids=["off", "behind", "ahead"])
def test_without_a_step_to_trace_the_tracer_never_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int] | None, start: int
) -> None:
    monkeypatch.setattr(profiling, "profile", None)
    train(tmp_path, steps, start, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_traced_run_is_the_run_to_the_bit(tmp_path: Path) -> None:
    plain, found = train(tmp_path, None, 0, 5), train(tmp_path, (2, 4), 0, 5)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))

"""The one loop, alone in the world, with a plain engine: when it updates, logs, shows and saves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magvit_scale.config import Refusal, RunConfig
from magvit_scale.training import distributed, loop
from magvit_scale.training.distributed import Ranks
from magvit_scale.training.tracking import Tracker
from tests.unit.training.conftest import assert_equal, build_state, content


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig


class Training:
    """Counts what the loop asks for; `die_after` ends it after so many updates, as a kill does."""

    def __init__(self, run: RunConfig, die_after: int | None = None) -> None:
        self.state, self.run, self.die_after = build_state(1), run, die_after
        self.started_at: list[int] = []
        self.updated: list[tuple[int, int]] = []
        self.shown: list[int] = []
        ranks = Ranks(0, 1, torch.device("cpu"))
        engines, replicated = self.state.engines, self.state.replicated
        loop.train(Config(run=run), ranks, engines=engines, replicated=replicated, batches=self.batches,
                   update=self.update, sample=self.sample, notes=["a note"])  # fmt: skip

    def batches(self, start: int) -> Iterator[int]:
        self.started_at.append(start)
        return iter(range(100 + start, 100 + self.run.steps))

    def update(self, batch: int, step: int) -> dict[str, Tensor]:
        if len(self.updated) == self.die_after:
            raise KeyboardInterrupt
        self.updated.append((batch, step))
        self.state.engines["generator"].train(1)
        next(self.state.replicated["average"].parameters()).data.add_(step)
        return {"loss/total": torch.tensor(float(step)), "loss/half": torch.tensor(step / 2, dtype=torch.float64)}

    def sample(self, tracker: Tracker, step: int) -> None:
        self.shown.append(step)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "mean_over_ranks", lambda value: value)


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(folder=str(tmp_path / "run"), steps=8, global_batch_size=1, log_every=3, sample_every=4,
                     checkpoint_every=3, keep_checkpoints=2)  # fmt: skip


def metrics(run: RunConfig) -> list[tuple[int, float, float]]:
    lines = map(json.loads, Path(run.folder, "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss/total"], line["loss/half"]) for line in lines]


def checkpoints(run: RunConfig) -> list[str]:
    return sorted(path.name for path in Path(run.folder, "checkpoints").iterdir())


def test_every_step_once_and_the_last_step_is_logged_shown_and_saved(run: RunConfig) -> None:
    training = Training(run)
    assert training.updated == [(100 + step, step) for step in range(8)]
    assert metrics(run) == [(3, 2.0, 1.0), (6, 5.0, 2.5), (8, 7.0, 3.5)]
    assert training.shown == [4, 8]
    assert checkpoints(run) == ["latest", "step_00000006", "step_00000008"]
    assert Path(run.folder, "log.txt").read_text().splitlines()[1].endswith(" a note")


def test_a_sample_every_of_zero_shows_nothing(run: RunConfig) -> None:
    assert Training(replace(run, sample_every=0)).shown == []


@pytest.mark.parametrize("die_after", [0, 2, 3, 5, 7])
def test_a_killed_run_continues_at_its_newest_checkpoint_and_ends_alike(
    run: RunConfig, tmp_path: Path, die_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(run, die_after)
    resumed = Training(run)
    start = die_after // 3 * 3
    assert resumed.started_at == [start]
    assert resumed.updated == [(100 + step, step) for step in range(start, 8)]
    other = replace(run, folder=str(tmp_path / "undisturbed"))
    undisturbed = Training(other)
    assert_equal(content(resumed.state), content(undisturbed.state))
    assert metrics(run) == metrics(other)
    assert checkpoints(run) == checkpoints(other)


def test_a_finished_run_updates_nothing(run: RunConfig) -> None:
    finished = Training(run)
    before = {path: path.read_bytes() for path in sorted(Path(run.folder, "checkpoints").rglob("*")) if path.is_file()}
    again = Training(run)
    assert (again.updated, again.shown) == ([], [])
    assert_equal(content(again.state), content(finished.state))
    assert metrics(run) == [(3, 2.0, 1.0), (6, 5.0, 2.5), (8, 7.0, 3.5)]
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_of_another_run_is_refused_before_the_first_step(run: RunConfig) -> None:
    Training(run)
    before = metrics(run)
    with pytest.raises(Refusal, match=r"has run\.steps=8, this run run\.steps=9"):
        Training(replace(run, steps=9))
    assert metrics(run) == before

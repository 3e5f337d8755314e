"""The one loop, alone in the world, with a plain engine: when it updates, logs, shows and saves."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor

from magvit_scale.config import HealthConfig, HealthRule, Refusal, RunConfig
from magvit_scale.training import distributed, loop
from magvit_scale.training.checkpoint import Writer
from magvit_scale.training.health import NotFiniteError
from magvit_scale.training.retention import latest
from magvit_scale.training.run import Work
from magvit_scale.training.signals import STOPPED_STATUS
from magvit_scale.training.tracking import Tracker
from tests.unit.training.conftest import ALONE, assert_equal, build_state, content, engine_of, train

FIRST_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    health: HealthConfig = field(default_factory=HealthConfig)


class Training:
    """Counts what the loop asks for. What `trouble` does to a step, by the batch that meets it, is up to a test."""

    def __init__(
        self, config: Config, trouble: Callable[[int, "Training"], None] | None = None, data: str = "a data set"
    ) -> None:
        self.state, self.config, self.trouble, self.data = build_state(1), config, trouble, data
        self.started_at: list[int] = []
        self.updated: list[tuple[int, int]] = []
        self.shown: list[int] = []
        self.factor = 1.0
        self.finished_with: Path | None = None

    def run(self) -> "Training":
        work = Work(state=self.state, batches=self.batches, update=self.update, sample=self.sample, finish=self.finish,
                    data=self.data, frames_per_sample=4, notes=["a note"])  # fmt: skip
        loop.train(self.config, ALONE, work)
        return self

    def batches(self, start: int) -> Iterator[int]:
        self.started_at.append(start)
        return count(FIRST_BATCH + start)

    def update(self, batch: int, step: int) -> dict[str, Tensor]:
        self.factor = 1.0
        if self.trouble:
            self.trouble(batch, self)
        self.updated.append((batch, step))
        train(engine_of(self.state, "generator"), 1)
        self.state.replicated["count"].value.add_(batch)
        value = self.factor * batch
        return {"loss/total": torch.tensor(value), "loss/half": torch.tensor(value / 2, dtype=torch.float64)}

    def finish(self) -> None:
        self.finished_with = latest(Path(self.config.run.folder) / "checkpoints")

    def sample(self, tracker: Tracker | None, step: int) -> None:
        assert tracker is not None
        self.shown.append(step)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "barrier": lambda: None, "mean_over_ranks": lambda value: value, "tell": lambda text: text,
        "tell_number": lambda number: number, "any_over_ranks": lambda *flags: [bool(flag) for flag in flags],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(distributed, name, answer)
    # A killed process may leave a checkpoint half written or whole; here it is whole.
    monkeypatch.setattr(Writer, "close", lambda self: self._pool.shutdown(wait=True))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    run = RunConfig(folder=str(tmp_path / "run"), steps=8, global_batch_size=3, log_every=3, sample_every=4,
                    checkpoint_every=3, keep_checkpoints=2)  # fmt: skip
    return Config(run=run)


def metrics(config: Config) -> list[tuple[int, float, float]]:
    lines = map(json.loads, Path(config.run.folder, "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss/total"], line["loss/half"]) for line in lines]


def checkpoints(config: Config) -> list[str]:
    return sorted(path.name for path in Path(config.run.folder, "checkpoints").iterdir())


def log(config: Config) -> list[str]:
    return [line.split(" ", 2)[2] for line in Path(config.run.folder, "log.txt").read_text().splitlines()]


def die_at(batch: int) -> Callable[[int, Training], None]:
    def die(met: int, training: Training) -> None:
        if met == batch:
            raise KeyboardInterrupt

    return die


def once(batch: int, act: Callable[[Training], None]) -> Callable[[int, Training], None]:
    return lambda met, training: act(training) if met == batch else None


def not_finite(training: Training) -> None:
    raise NotFiniteError("loss/total")


def high(training: Training) -> None:
    training.factor = 1000.0


# ----------------------------------------------------------------------------------------------------------------------
# Undisturbed, killed, stopped


def test_every_step_once_and_the_last_step_is_logged_shown_and_saved(config: Config) -> None:
    training = Training(config).run()
    assert training.updated == [(100 + step, step) for step in range(8)]
    assert metrics(config) == [(3, 102.0, 51.0), (6, 105.0, 52.5), (8, 107.0, 53.5)]
    assert training.shown == [4, 8]
    assert training.finished_with == Path(config.run.folder) / "checkpoints" / "step_00000008"
    assert checkpoints(config) == ["latest", "step_00000006", "step_00000008"]
    assert log(config)[:2] == ["step 0 of 8, 1 ranks on cpu", "a note"]


def test_a_checkpoint_says_what_it_is_of(config: Config) -> None:
    Training(config).run()
    folder = Path(config.run.folder, "checkpoints", "step_00000006")
    about = json.loads((folder / "state.json").read_text())
    assert {key: about[key] for key in ("step", "samples", "data", "world_size")} == {
        "step": 6, "samples": 18, "data": "a data set", "world_size": 1
    }  # fmt: skip
    assert (about["metrics"]["loss/total"], about["versions"]["torch"]) == (105.0, version("torch"))
    assert (folder / "config.yaml").read_text() == Path(config.run.folder, "config.yaml").read_text()


def test_throughput_is_in_the_files_and_not_in_what_the_rules_see(config: Config) -> None:
    rule = HealthRule(metric="perf/step_s", above=0.0, action="stop")
    Training(replace(config, health=HealthConfig(rules={"slow": rule}))).run()
    first = json.loads(Path(config.run.folder, "metrics.jsonl").read_text().splitlines()[0])
    assert {name for name in first if name.startswith("perf/")} >= {
        "perf/samples_per_s", "perf/frames_per_s", "perf/step_s", "perf/data_wait_share", "perf/memory_peak_gb"
    }  # fmt: skip
    assert first["perf/frames_per_s"] == pytest.approx(4 * first["perf/samples_per_s"], rel=1e-4)


def test_hours_go_on_after_an_interruption(config: Config) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(config, die_at(FIRST_BATCH + 4)).run()
    path = Path(config.run.folder, "metrics.jsonl")
    first = json.loads(path.read_text().splitlines()[0]) | {"perf/rank_hours": 70.0}
    path.write_text(json.dumps(first) + "\n")
    Training(config).run()
    hours = [json.loads(line)["perf/rank_hours"] for line in path.read_text().splitlines()]
    assert hours[0] == 70
    assert all(70 <= value < 71 for value in hours[1:])


def test_a_run_says_what_it_is_in_tensorboard(config: Config) -> None:
    Training(config).run()
    Training(config).run()
    found = EventAccumulator(str(Path(config.run.folder, "tensorboard"))).Reload()
    ((text,),) = (make_ndarray(event.tensor_proto) for event in found.Tensors("config/text_summary"))
    assert Path(config.run.folder, "config.yaml").read_text() in text.decode()


def test_a_sample_every_of_zero_shows_nothing(config: Config) -> None:
    assert Training(replace(config, run=replace(config.run, sample_every=0))).run().shown == []


@pytest.mark.parametrize("done", [0, 2, 3, 5, 7])
def test_a_killed_run_continues_at_its_newest_checkpoint_and_ends_alike(
    config: Config, tmp_path: Path, done: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(config, die_at(FIRST_BATCH + done)).run()
    resumed = Training(config).run()
    start = done // 3 * 3
    assert resumed.started_at == [start]
    assert resumed.updated == [(100 + step, step) for step in range(start, 8)]
    ends_alike(resumed, config, tmp_path)


def ends_alike(
    training: Training, config: Config, tmp_path: Path, trouble: Callable[[int, Training], None] | None = None
) -> None:
    other = replace(config, run=replace(config.run, folder=str(tmp_path / "undisturbed")))
    undisturbed = Training(other, trouble).run()
    assert_equal(content(training.state), content(undisturbed.state))
    assert metrics(config) == metrics(other)
    assert checkpoints(config) == checkpoints(other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_run_that_is_asked_to_stop_saves_and_continues(
    config: Config, tmp_path: Path, number: signal.Signals
) -> None:
    stopping = Training(config, once(FIRST_BATCH + 4, lambda training: signal.raise_signal(number)))
    with pytest.raises(SystemExit) as end:
        stopping.run()
    assert end.value.code == STOPPED_STATUS
    assert stopping.updated[-1] == (104, 4), "the step is finished"
    assert "step_00000005" in checkpoints(config)
    assert log(config)[-1] == f"stopped by {number.name} after step 5; the same command continues"
    resumed = Training(config).run()
    assert resumed.updated == [(100 + step, step) for step in range(5, 8)]
    ends_alike(resumed, config, tmp_path)


def test_a_request_at_the_last_step_is_dropped(config: Config) -> None:
    Training(config, once(FIRST_BATCH + 7, lambda training: signal.raise_signal(signal.SIGTERM))).run()
    assert checkpoints(config)[-1] == "step_00000008"


def test_a_finished_run_updates_nothing(config: Config) -> None:
    finished = Training(config).run()
    folder = Path(config.run.folder, "checkpoints")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    again = Training(config).run()
    assert (again.updated, again.shown) == ([], [])
    assert_equal(content(again.state), content(finished.state))
    assert metrics(config) == [(3, 102.0, 51.0), (6, 105.0, 52.5), (8, 107.0, 53.5)]
    assert {path: path.read_bytes() for path in before} == before


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


def test_a_folder_of_another_run_is_refused_before_the_first_step(config: Config) -> None:
    Training(config).run()
    before = metrics(config)
    with pytest.raises(Refusal, match=r"has run\.steps=8, this run run\.steps=9"):
        Training(replace(config, run=replace(config.run, steps=9))).run()
    assert metrics(config) == before


def test_other_data_is_refused_before_the_first_step(config: Config) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(config, die_at(FIRST_BATCH + 4)).run()
    other = Training(config, data="another data set")
    with pytest.raises(
        Refusal, match=r"step_00000003 was trained on other data \(a data set, now another data\); give"
    ):
        other.run()
    assert other.updated == []
    assert Training(config).run().updated[0] == (103, 3)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "serialize_file", full_disk)
    training = Training(config)
    with pytest.raises(OSError, match="No space left on device; the older checkpoints are whole: free some space"):
        training.run()
    assert 3 <= len(training.updated) <= 6, "at the latest where the next checkpoint is due"


# ----------------------------------------------------------------------------------------------------------------------
# Trouble


def spike_rule(action: str) -> HealthConfig:
    return HealthConfig(rules={"high": HealthRule(metric="loss/total", above=900.0, action=action)})  # type: ignore[arg-type]


def test_a_warning_is_a_line_and_no_more(config: Config) -> None:
    training = Training(replace(config, health=spike_rule("warn")), once(FIRST_BATCH + 5, high)).run()
    assert training.updated == [(100 + step, step) for step in range(8)]
    assert [line for line in log(config) if "health.rules" in line] == [
        "step 6: loss/total=105000 is above 900, after 1 logged value from step 6 on (health.rules.high)",
        "step 8: loss/total=107 is no longer above 900, after 1 logged value from step 6 on (health.rules.high)",
    ]


@pytest.mark.parametrize(
    ("health", "trouble", "steps", "words"),
    [
        (spike_rule("stop"), high, 6, "step 6: loss/total=105000 is above 900"),
        (HealthConfig(non_finite="stop"), not_finite, 5, "step 6: loss/total is not finite; the update was not made"),
    ],
)
def test_a_rule_can_stop_a_run_which_stops_again_when_it_is_started_again(
    config: Config, health: HealthConfig, trouble: Callable[[Training], None], steps: int, words: str
) -> None:
    config = replace(config, health=health)
    for start in (0, 3):
        training = Training(config, once(FIRST_BATCH + 5, trouble))
        with pytest.raises(Refusal, match=words):
            training.run()
        assert training.updated == [(100 + step, step) for step in range(start, steps)]
        assert any(line.startswith(words) for line in log(config))
    assert checkpoints(config) == ["latest", "step_00000003"]


BACK = [
    (spike_rule("rollback"), high, 6, {"rule": "high", "found": 6, "resumed": 3}),
    (HealthConfig(non_finite="rollback"), not_finite, 5, {"rule": "non_finite", "found": 6, "resumed": 3}),
]


@pytest.mark.parametrize(("health", "trouble", "steps", "expected"), BACK)
def test_a_rollback_goes_on_with_other_data(
    config: Config, health: HealthConfig, trouble: Callable[[Training], None], steps: int, expected: dict[str, Any]
) -> None:
    config = replace(config, health=health)
    training = Training(config, once(FIRST_BATCH + 5, trouble)).run()
    assert training.updated == [
        *[(100 + step, step) for step in range(steps)],
        *[(100 + step + 3, step) for step in range(3, 8)],  # batches 103 to 105 are met no more
    ]
    assert training.started_at == [0, 6]
    assert [step for step, _, _ in metrics(config)] == [3, 6, 8]
    assert metrics(config)[1:] == [(6, 108.0, 54.0), (8, 110.0, 55.0)]
    assert json.loads(Path(config.run.folder, "rollbacks.jsonl").read_text()) == expected
    about = json.loads(Path(config.run.folder, "checkpoints", "step_00000008", "state.json").read_text())
    assert about["samples"] == 33
    total = sum(range(100, 103)) + sum(range(106, 111))
    assert training.state.replicated["count"].value.item() == 1 + total, "nothing of the steps taken back is left"


@pytest.mark.parametrize("done", [6, 7, 9])
@pytest.mark.parametrize(("health", "trouble", "steps", "expected"), BACK)
def test_a_run_that_is_killed_after_a_rollback_ends_alike(
    config: Config, tmp_path: Path, done: int, health: HealthConfig, trouble: Callable[[Training], None],
    steps: int, expected: dict[str, Any],
) -> None:  # fmt: skip
    config, met = replace(config, health=health), once(FIRST_BATCH + 5, trouble)

    def both(batch: int, training: Training) -> None:
        met(batch, training)
        die_at(FIRST_BATCH + done)(batch, training)

    with pytest.raises(KeyboardInterrupt):
        Training(config, both).run()
    resumed = Training(config, met).run()
    assert resumed.started_at == [6 if done < 9 else 9]
    ends_alike(resumed, config, tmp_path, met)


def test_too_many_rollbacks_stop_the_run(config: Config) -> None:
    config = replace(config, health=HealthConfig(non_finite="rollback", max_rollbacks=2))

    def from_the_fifth_on(batch: int, training: Training) -> None:
        if batch >= FIRST_BATCH + 4:
            not_finite(training)

    training = Training(config, from_the_fifth_on)
    with pytest.raises(Refusal, match=r"2 rollbacks were made, and health\.max_rollbacks allows no more"):
        training.run()
    assert training.started_at == [0, 5, 6]
    assert training.updated == [(100 + step, step) for step in range(4)]
    assert log(config)[-1].startswith("step 4: loss/total is not finite")


def test_without_an_older_checkpoint_there_is_no_way_back(config: Config) -> None:
    config = replace(config, health=HealthConfig(non_finite="rollback"))
    with pytest.raises(Refusal, match=r"step 2: .* is not finite.*; no checkpoint is older than the trouble"):
        Training(config, once(FIRST_BATCH + 1, not_finite)).run()

"""Trouble injected into whole programs: what each rule is told to do is done, on all ranks at the same step."""

import json
import signal
from pathlib import Path

import pytest

from magvit_scale.training.retention import latest
from tests.integration.alike import assert_ends_alike, trained
from tests.integration.nursery import Nursery
from tests.integration.tiny_runs import TinyRuns

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SPOIL, SCALE = "tests.integration.injections:spoil", "tests.integration.injections:scale_metric"
SPIKE = ["health.rules.loss_spike.window=2", "health.rules.loss_spike.patience=1", "health.rules.loss_spike.spike=5"]
COLLAPSE = ["health.rules.codebook_collapse.after=0", "health.rules.codebook_collapse.patience=1"]
# (steps completed, batch) of six steps, where batch 3 spoils the fourth: all go back to step 2 and leave 2 and 3 out.
STRAIGHT = [(step, step) for step in range(6)]
AROUND = [(0, 0), (1, 1), (2, 2), (3, 3), (2, 4), (3, 5), (4, 6), (5, 7)]


def met(folder: Path, rank: int) -> list[tuple[int, int]]:
    """(steps completed, batch) of every step that a rank has begun."""
    lines = (folder / f"rank{rank}.jsonl").read_text().splitlines()
    return [(step, number) for step, number, _ in map(json.loads, lines)]


def rollbacks(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "rollbacks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("program", "stage", "what", "said"),
    [
        ("vqgan", 1, "loss", "loss/quantizer"),
        ("vqgan", 3, "gradient", "the gradient of the generator"),
        ("commit", 0, "gradient", "the gradient of the transformer"),
        ("commit", 3, "loss", "loss/total"),
    ],
)
def test_what_is_not_finite_on_one_rank_stops_all_before_the_update(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path: Path, program: str, stage: int, what: str, said: str
) -> None:
    run, spell = tmp_path / "run", {"program": program, "folder": str(tmp_path), "what": what, "bad": [3], "struck": 1}
    world, statuses = nursery.run(tiny_runs.of(program, run, stage, 2), cast=SPOIL, **spell)
    assert statuses == [1, 1], world.describe()
    for rank, names in enumerate([said if what == "gradient" else "a value of another rank", said]):
        line = f"magvit train-{program}: step 4: {names} is not finite; the update was not made; lower "
        assert [one.startswith(line) for one in world.said(rank).splitlines() if "magvit train-" in one] == [True]
        assert "Traceback" not in world.said(rank), world.describe()
        assert met(tmp_path, rank) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [line["step"] for line in trained(run)] == [1, 2, 3]
    assert latest(run / "checkpoints") == run / "checkpoints" / "step_00000002"


@pytest.mark.parametrize(
    ("program", "stage", "what"),
    [("vqgan", 0, "gradient"), ("vqgan", 3, "gradient"), ("commit", 2, "loss"), ("commit", 3, "loss")],
)
def test_a_rollback_leaves_the_bad_batches_out_and_a_kill_in_it_changes_nothing(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path: Path, program: str, stage: int, what: str
) -> None:
    spell = {"program": program, "what": what, "bad": [3], "struck": 1}
    for name in ("whole", "before", "after"):
        (tmp_path / name).mkdir()
        arguments = [*tiny_runs.of(program, tmp_path / name / "run", stage, 2), "health.non_finite=rollback"]
        if name != "whole":
            told = {**spell, "folder": str(tmp_path / name), "killed": name}
            world, statuses = nursery.run(arguments, cast=SPOIL, **told)
            assert statuses == [-signal.SIGKILL] * 2, world.describe()
        nursery.succeed(arguments, cast=SPOIL, folder=str(tmp_path / name), **spell)
        run = tmp_path / name / "run"
        assert rollbacks(run) == [{"rule": "non_finite", "found": 4, "resumed": 2}]
        assert [line["step"] for line in trained(run)] == [1, 2, 3, 4, 5, 6]
        if name != "whole":
            assert_ends_alike(run, tmp_path / "whole" / "run")
    for rank in (0, 1):
        assert met(tmp_path / "whole", rank) == AROUND
        assert met(tmp_path / "after", rank) == AROUND
        assert met(tmp_path / "before", rank) == [*AROUND[:4], *AROUND[2:]]


@pytest.mark.parametrize(
    ("bad", "limit", "step", "found"),
    [
        ([3, 5], 1, 4, "1 rollbacks were made, and health.max_rollbacks allows no more"),
        ([1], 3, 2, "no checkpoint is older than the trouble"),
    ],
)
def test_where_there_is_no_way_back_the_run_stops(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path: Path, bad: list[int], limit: int, step: int, found: str
) -> None:
    arguments = [*tiny_runs.commit(tmp_path / "run", 1), "health.non_finite=rollback", f"health.max_rollbacks={limit}"]
    spell = {"program": "commit", "folder": str(tmp_path), "what": "loss", "bad": bad, "struck": 0}
    world, statuses = nursery.run(arguments, cast=SPOIL, **spell)
    assert statuses == [1, 1], world.describe()
    last = world.said(0).splitlines()[-1]
    assert last.startswith(f"magvit train-commit: step {step}: loss/total is not finite"), last
    assert last.endswith(found), last


TROUBLES = [
    ("commit", "loss/total", 100.0, "loss_spike", SPIKE, "loss/total="),
    ("vqgan", "codebook/usage_window", 0.01, "codebook_collapse", COLLAPSE, "codebook/usage_window="),
]


@pytest.mark.parametrize(("program", "metric", "factor", "rule", "settings", "said"), TROUBLES)
@pytest.mark.parametrize("action", ["warn", "stop", "rollback"])
def test_a_rule_does_as_it_is_told(
    nursery: Nursery,
    tiny_runs: TinyRuns,
    tmp_path: Path,
    program: str,
    metric: str,
    factor: float,
    rule: str,
    settings: list[str],
    said: str,
    action: str,
) -> None:
    run = tmp_path / "run"
    arguments = [*tiny_runs.of(program, run, 1), *settings, f"health.rules.{rule}.action={action}"]
    spell = {"program": program, "folder": str(tmp_path), "metric": metric, "factor": factor, "bad": [3]}
    world, statuses = nursery.run(arguments, cast=SCALE, **spell)
    assert statuses == ([1, 1] if action == "stop" else [0, 0]), world.describe()
    log = (run / "log.txt").read_text()
    assert log.count(f" step 4: {said}") == 1
    assert log.count(f"(health.rules.{rule})") == (2 if action == "warn" else 1)
    assert [met(tmp_path, rank) for rank in (0, 1)] == [
        {"warn": STRAIGHT, "stop": STRAIGHT[:4], "rollback": AROUND}[action]
    ] * 2
    if action == "stop":
        line = f"magvit train-{program}: step 4: {said}"
        assert all(world.said(rank).splitlines()[-1].startswith(line) for rank in (0, 1)), world.describe()
    if action == "rollback":
        assert rollbacks(run) == [{"rule": rule, "found": 4, "resumed": 2}]
    assert [line["step"] for line in trained(run)] == list(range(1, 5 if action == "stop" else 7))

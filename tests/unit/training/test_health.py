"""Trouble of every kind, injected as logged values: the step at which it is found, and what is to be done."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magvit_scale.config import HealthAction, HealthConfig, HealthRule, Refusal, commit_health, vqgan_health
from magvit_scale.training.health import Finding, Health, NotFiniteError, as_logged, finite_guard
from magvit_scale.training.tracking import Tracker

LOG_EVERY = 20
NAN, INFINITY = float("nan"), float("inf")


def health_of(**rules: HealthRule) -> Health:
    return Health(HealthConfig(rules=rules))


def watch(health: Health, metric: str, values: Iterable[float], first: int = LOG_EVERY) -> list[Finding]:
    """Logs one value every LOG_EVERY steps."""
    steps = range(first, 10**9, LOG_EVERY)
    return [
        finding for step, value in zip(steps, values, strict=False) for finding in health.observe(step, {metric: value})
    ]


def acts(findings: Sequence[Finding]) -> list[tuple[int, HealthAction]]:
    return [(finding.step, finding.action) for finding in findings]


def test_finite_values_pass() -> None:
    finite_guard(lambda flag: [flag])({"loss": torch.tensor(3e38), "gradient": torch.zeros(2, 2)})


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_one_broken_element_stops_the_step_and_is_named(broken: float) -> None:
    guard = finite_guard(lambda flag: [flag])
    with pytest.raises(NotFiniteError, match=r"^loss/r1, gradient is not finite; the update was not made"):
        guard({"loss": torch.ones(()), "loss/r1": torch.tensor(broken), "gradient": torch.tensor([[1.0], [broken]])})


def test_all_ranks_stop_together() -> None:
    said: list[bool] = []

    def another_rank_is_broken(flag: bool) -> list[bool]:
        said.append(flag)
        return [True]

    with pytest.raises(Refusal, match="a value of another rank is not finite"):
        finite_guard(another_rank_is_broken)({"loss": torch.ones(())})
    assert said == [False]


def test_a_finite_rank_asks_the_others_too() -> None:
    asked: list[bool] = []

    def ask(flag: bool) -> list[bool]:
        asked.append(flag)
        return [False]

    finite_guard(ask)({"loss": torch.ones(())})
    assert asked == [False]


def test_a_value_that_is_not_finite_becomes_what_the_config_says() -> None:
    error = NotFiniteError("loss/r1")
    stop, back = (Health(HealthConfig(non_finite=action)) for action in ("stop", "rollback"))  # type: ignore[arg-type]
    assert stop.judge_not_finite(7, error) == Finding("non_finite", 8, "stop", 8, f"step 8: {error}")
    assert str(error) == (
        "loss/r1 is not finite; the update was not made; lower optim.learning_rate or look at the data"
    )
    assert back.judge_not_finite(7, error).action == "rollback"


def test_a_collapsing_codebook_is_found_after_its_patience_and_well_again_at_once() -> None:
    health = Health(vqgan_health())
    # Collapsed from step 1020 on. Before 2000 the rule sleeps, so 2000 is the first of the five values.
    findings = watch(health, "codebook/usage_window", [0.9] * 50 + [0.04] * 60 + [0.0500001, 0.3])
    assert acts(findings) == [(2080, "warn"), (2220, "warn")]
    assert [finding.since for finding in findings] == [2000, 2000]
    assert findings[0].words == (
        "step 2080: codebook/usage_window=0.04 is below 0.05, after 5 logged values from step 2000 on "
        "(health.rules.codebook_collapse)"
    )
    assert findings[1].words == (
        "step 2220: codebook/usage_window=0.0500001 is no longer below 0.05, after 11 logged values from step 2000 on "
        "(health.rules.codebook_collapse)"
    )


def test_trouble_shorter_than_the_patience_is_no_trouble() -> None:
    rule = HealthRule(metric="m", above=1.0, patience=3)
    assert watch(health_of(r=rule), "m", [2, 2, 0, 2, 2, 1, 2, 2]) == []
    assert acts(watch(health_of(r=rule), "m", [2, 2, 0, 2, 2, 2, 2, 0, 0, 2, 2, 2])) == [
        (120, "warn"), (160, "warn"), (240, "warn"),
    ]  # fmt: skip


def test_a_dying_codebook_and_an_unbounded_gap_are_found() -> None:
    dead = watch(Health(vqgan_health()), "codebook/dead_codes", [0.5] * 5 + [0.6] * 9, first=2000)
    assert acts(dead) == [(2180, "warn")]
    gap = watch(Health(vqgan_health()), "gan/lecam_gap", [9.0, 10.0, 10.1, 11.0, 12.0, 13.0, 14.0, 15.0, 3.0])
    assert acts(gap) == [(140, "warn"), (180, "warn")]
    assert gap[0].words.startswith("step 140: gan/lecam_gap=14 is above 10, after 5 logged values from step 60 on")


def test_a_discriminator_that_wins_and_one_that_is_blind() -> None:
    wins = watch(Health(vqgan_health()), "gan/accuracy", [0.8] * 10 + [0.995] * 30)
    assert [(f.rule, f.step, f.since) for f in wins] == [("discriminator_wins", 600, 220)]
    blind = watch(Health(vqgan_health()), "gan/accuracy", [0.5] * 200, first=1000)
    assert [(f.rule, f.step, f.since) for f in blind] == [("discriminator_blind", 2980, 2000)]


def test_a_spike_is_measured_by_the_median_of_what_kept_the_rule() -> None:
    rule = HealthRule(metric="m", spike=3.0, window=5, patience=2)
    # Median 2 of the first five; 6 is three times that and no more; then the median of 2 1 9 2 6 is 2 still.
    values = [1, 2, 1, 9, 2, 6, 6.01, 6.01, 7, 8, 9, 10, 6, 6.01]
    findings = watch(health_of(r=rule), "m", values)
    assert acts(findings) == [(160, "warn"), (260, "warn")]
    assert "m=6.01 is above 3 times the usual 2, after 2 logged values from step 140 on" in findings[0].words
    assert "m=6 is no longer above 3 times the usual 2, after 6 logged values" in findings[1].words


def test_a_loss_that_jumps_and_stays_is_not_well_again_by_getting_used_to_it() -> None:
    assert acts(watch(Health(vqgan_health()), "loss/reconstruction", [0.1] * 50 + [0.31] * 200)) == [(1040, "warn")]
    assert acts(watch(Health(commit_health()), "loss/total", [4.0] * 50 + [6.9] * 200)) == [(1060, "warn")]


def test_a_spike_needs_a_full_window_and_measures_negative_values_by_magnitude() -> None:
    rule = HealthRule(metric="m", spike=3.0, window=4)
    assert watch(health_of(r=rule), "m", [1, 1, 1, 100]) == []
    assert acts(watch(health_of(r=rule), "m", [-1, -1, -1, -1, -0.5, 2.9, 3.1])) == [(140, "warn")]


@pytest.mark.parametrize("bound", [{"above": 1.0}, {"below": -1.0}, {"spike": 2.0}])
@pytest.mark.parametrize("broken", [NAN, INFINITY, -INFINITY])
def test_a_logged_value_that_is_not_finite_breaks_every_rule_and_spoils_no_median(
    bound: dict[str, float], broken: float
) -> None:
    rule = HealthRule(metric="m", window=3, **bound)  # type: ignore[arg-type]
    findings = watch(health_of(r=rule), "m", [0.5, broken, 0.5, broken, 0.5, 0.75])
    assert acts(findings) == [(40, "warn"), (60, "warn"), (80, "warn"), (100, "warn")]
    assert f"m={broken:.6g} is not finite, after 1 logged value from step 40 on" in findings[0].words
    assert "m=0.5 is no longer not finite" in findings[1].words


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_stop_and_rollback_are_found_as_long_as_trouble_lasts(action: HealthAction) -> None:
    rule = HealthRule(metric="m", above=1.0, patience=2, action=action)
    findings = watch(health_of(r=rule), "m", [0, 2, 2, 2, 0])
    assert acts(findings) == [(60, action), (80, action), (100, "warn")]
    assert {finding.since for finding in findings} == {40}


def test_a_stopped_run_that_is_started_again_stops_again() -> None:
    health = health_of(r=HealthRule(metric="m", above=1.0, patience=3, action="stop"))
    health.replay([json.dumps({"step": step, "time": 0.5, "m": 2.0}) for step in (20, 40, 60)], until=60)
    assert acts(health.observe(80, {"m": 2.0})) == [(80, "stop")]


def test_a_rule_that_is_off_and_one_whose_value_is_not_logged_say_nothing() -> None:
    health = health_of(
        off=HealthRule(metric="m", above=1.0, action="none"),
        late=HealthRule(metric="gan/accuracy", above=0.9),
        typo=HealthRule(metric="codebok/usage", below=0.1),
        on=HealthRule(metric="m", above=5.0),
    )
    assert health.observe(20, {"m": 2.0}) == []
    assert health.waiting() == "health: not logged so far, so not watched: gan/accuracy (late), codebok/usage (typo)"
    assert acts(health.observe(40, {"m": 2.0, "gan/accuracy": 1.0})) == [(40, "warn")]
    assert health.waiting() == "health: not logged so far, so not watched: codebok/usage (typo)"
    assert health_of().waiting() == ""


def test_a_break_in_the_log_of_a_value_does_not_end_its_streak() -> None:
    health = health_of(r=HealthRule(metric="m", above=1.0, patience=2))
    assert health.observe(20, {"m": 2.0}) == []
    assert health.observe(40, {"other": 0.0}) == []
    assert acts(health.observe(60, {"m": 2.0})) == [(60, "warn")]


def test_a_value_on_its_bound_keeps_the_rule() -> None:
    values = [1.0, 1.00001, 0.99999]
    assert acts(watch(health_of(r=HealthRule(metric="m", above=1.0)), "m", values)) == [(40, "warn"), (60, "warn")]
    assert acts(watch(health_of(r=HealthRule(metric="m", below=1.0)), "m", values)) == [(60, "warn")]


def test_a_rollback_forgets_what_is_taken_back() -> None:
    health = health_of(
        jump=HealthRule(metric="m", above=9.0, patience=2, action="rollback"),
        spike=HealthRule(metric="m", spike=2.0, window=3),
    )
    values = [1.0, 1.0, 1.0, 1.5, 1.75, 10.0, 10.0]
    assert acts(watch(health, "m", values)) == [(120, "warn"), (140, "rollback")]
    health.replay([logged_line((i + 1) * LOG_EVERY, {"m": value}) for i, value in enumerate(values)], until=60)
    assert acts(watch(health, "m", [10.0, 1.0, 2.25], first=80)) == [(80, "warn"), (100, "warn"), (120, "warn")]


def test_values_are_judged_as_they_are_logged() -> None:
    """1.0000004 is 1 in metrics.jsonl: what is found live must be what a replay finds."""
    assert as_logged(1.0000004) == 1.0
    assert as_logged(1.000006) == 1.00001
    rule = HealthRule(metric="m", above=1.0)
    assert acts(watch(health_of(r=rule), "m", [1.0000004, 1.000006])) == [(40, "warn")]


def test_a_resume_reads_the_file_that_the_tracker_wrote(tmp_path: Path) -> None:
    values = [0.5, 1.0000004, 2.0, 3.0, NAN, 0.25]
    tracker = Tracker(tmp_path, 0)
    for index, value in enumerate(values):
        tracker.scalars((index + 1) * LOG_EVERY, {"m": value, "n": 0.0})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 140, "time": 1.5, "m": 9')
    rule = HealthRule(metric="m", above=1.0, patience=2)
    for until in range(0, 7 * LOG_EVERY, LOG_EVERY):
        resumed, straight = health_of(r=rule), health_of(r=rule)
        resumed.replay((tmp_path / "metrics.jsonl").read_text().splitlines(), until)
        watch(straight, "m", values[: until // LOG_EVERY])
        rest = [3.0, 3.0, 0.0, 3.0, 3.0]
        assert watch(resumed, "m", rest, until + LOG_EVERY) == watch(straight, "m", rest, until + LOG_EVERY)


RULES = st.builds(
    lambda kind, bound, **others: HealthRule(**{kind: bound + (kind == "spike")}, **others),
    kind=st.sampled_from(["above", "below", "spike"]),
    bound=st.floats(0.1, 2, allow_nan=False),
    metric=st.sampled_from(["a", "b"]),
    window=st.integers(1, 4),
    patience=st.integers(1, 3),
    after=st.integers(0, 10),
    action=st.sampled_from(["none", "warn", "stop", "rollback"]),
)
LINES = st.lists(
    st.dictionaries(st.sampled_from(["a", "b"]), st.floats(-4, 4, allow_subnormal=False) | st.just(NAN)), max_size=25
)


@settings(deadline=None, max_examples=200)
@given(rules=st.dictionaries(st.sampled_from(["r", "s", "t"]), RULES), lines=LINES, data=st.data())
def test_a_run_broken_anywhere_finds_what_an_undisturbed_one_finds(
    rules: dict[str, HealthRule], lines: list[dict[str, float]], data: st.DataObject
) -> None:
    """Also after a rollback: the same object is replayed up to an earlier step."""
    straight, broken = Health(HealthConfig(rules=rules)), Health(HealthConfig(rules=rules))
    expected = [straight.observe(step, values) for step, values in enumerate(lines)]
    reached = data.draw(st.integers(0, len(lines)))
    for step, values in enumerate(lines[:reached]):
        broken.observe(step, values)
    start = data.draw(st.integers(0, len(lines)))
    broken.replay([logged_line(step, values) for step, values in enumerate(lines)], until=start - 1)
    assert [broken.observe(step, lines[step]) for step in range(start, len(lines))] == expected[start:]
    assert broken.waiting() == straight.waiting()


def logged_line(step: int, values: Mapping[str, float]) -> str:
    return json.dumps({"step": step, "time": 1.5} | {name: float(f"{value:.6g}") for name, value in values.items()})

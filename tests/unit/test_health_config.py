"""Rules of health as a user writes them: one field changed, one switched off, one added."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from magvit_scale.config import (
    CodebookUseConfig,
    HealthConfig,
    HealthRule,
    Refusal,
    commit_health,
    describe,
    dump,
    load,
    vqgan_health,
)
from magvit_scale.vqgan.balance import discriminator_health
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.losses import LeCam


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training configuration, reduced to its health."""

    health: HealthConfig = field(default_factory=vqgan_health)
    codebook_use: CodebookUseConfig = field(default_factory=CodebookUseConfig)


def rules_of(*overrides: str) -> dict[str, HealthRule]:
    return load(Run, [], overrides).health.rules


def test_one_field_of_a_default_rule_is_changed_and_nothing_else() -> None:
    default = vqgan_health().rules
    changed = rules_of("health.rules.loss_spike.action=stop", "health.rules.codebook_collapse.below=1e-3")
    assert list(changed) == list(default)
    assert changed.pop("loss_spike") == replace(default.pop("loss_spike"), action="stop")
    assert changed.pop("codebook_collapse") == replace(default.pop("codebook_collapse"), below=0.001)
    assert changed == default


def test_a_rule_is_switched_off_by_its_action() -> None:
    assert rules_of("health.rules.loss_spike.action=none")["loss_spike"].action == "none"
    with pytest.raises(Refusal, match=r"health\.rules\.loss_spike"):
        rules_of("health.rules.loss_spike=null")
    with pytest.raises(Refusal, match="expected one of"):
        rules_of("health.rules.loss_spike.action=off")  # YAML reads a boolean.


def test_a_rule_of_ones_own_stands_beside_the_default_ones(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("health: {rules: {slow: {metric: time/step_s, above: 9, patience: 2}}}\n")
    config = load(Run, [path], ["health.rules.slow.action=stop", "health.max_rollbacks=1"])
    assert config.health.rules["slow"] == HealthRule(metric="time/step_s", above=9.0, patience=2, action="stop")
    assert list(config.health.rules) == [*vqgan_health().rules, "slow"]
    dump(config, tmp_path / "config.yaml")
    assert load(Run, [tmp_path / "config.yaml"]) == config


def test_a_bound_is_exchanged_for_another() -> None:
    rule = rules_of("health.rules.loss_spike.spike=null", "health.rules.loss_spike.above=2")["loss_spike"]
    assert (rule.spike, rule.above, rule.below) == (None, 2.0, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("health.rules.loss_spike.above=2", r"above=2\.0, spike=3\.0 on loss/reconstruction; expected exactly one of"),
        ("health.rules.loss_spike.spike=null", "no bound on loss/reconstruction; expected exactly one of above, below"),
        ("health.rules.loss_spike.spike=1", r"spike=1\.0 on loss/reconstruction; expected a factor above 1"),
        ("health.rules.loss_spike.patience=0", "patience=0: expected at least 1"),
        ("health.rules.loss_spike.window=0", "window=0: expected at least 1"),
        ("health.rules.loss_spike.after=-1", "after=-1 on loss/reconstruction; expected a step"),
        ("health.rules.los_spike.action=stop", r"no value for health\.rules\.los_spike\.metric"),
        ("health.rules.loss_spike.patients=3", r"health\.rules\.loss_spike\.patients"),
        ("health.max_rollbacks=-1", r"health\.max_rollbacks=-1: expected at least 0"),
        ("health.non_finite=warn", "expected one of"),
        ("codebook_use.window=0", r"codebook_use\.window=0: expected at least 1"),
        ("codebook_use.dead_after=100", r"codebook_use\.dead_after=100: expected more than window=100"),
        ("codebook_use.revive_every=-1", r"codebook_use\.revive_every=-1: expected at least 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        load(Run, [], [override])
    assert "\n" not in str(refusal.value)


def test_a_bound_of_zero_is_a_bound() -> None:
    assert HealthRule(metric="m", below=0.0).below == 0.0
    with pytest.raises(Refusal, match=r"above=0\.0, below=0\.0 on m"):
        HealthRule(metric="m", above=0.0, below=0.0)


def test_help_explains_the_rules() -> None:
    text = describe(Run)
    assert "health.rules.NAME.patience  (int; default 1)\n      So many logged values in a row" in text
    assert "health.non_finite  (stop | rollback; default 'stop')" in text


def test_the_default_rules_only_warn_and_watch_what_is_logged() -> None:
    """A metric misspelt in a default rule would never act and never be missed."""
    logits = torch.zeros(1)
    logged = {"loss/reconstruction", "optim/gradient_norm_generator", "optim/gradient_norm_discriminator"}
    logged |= CodebookUse(2, CodebookUseConfig()).metrics().keys()
    logged |= discriminator_health(logits, logits, LeCam(0.9)).keys()
    assert {rule.metric for rule in vqgan_health().rules.values()} <= logged
    assert {rule.metric for rule in commit_health().rules.values()} <= {
        "loss/total",
        "optim/gradient_norm_transformer",
    }
    assert {rule.action for rule in [*vqgan_health().rules.values(), *commit_health().rules.values()]} == {"warn"}

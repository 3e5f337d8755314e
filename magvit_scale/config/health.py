"""Health of a run: which logged values mean trouble, and what is done about it.

Rules have names of the user's choice, so `health.rules.loss_spike.action=stop` changes one field of a default rule,
`health.rules.loss_spike.action=none` switches it off, and `health.rules.NAME.metric=... health.rules.NAME.above=...`
adds one.
"""

from dataclasses import dataclass, field
from typing import Literal

from magvit_scale.config.reading import Refusal, refuse_below_one

HealthAction = Literal["none", "warn", "stop", "rollback"]


@dataclass(frozen=True, kw_only=True)
class HealthRule:
    """A bound on one logged value; exactly one of above, below and spike is given. NaN breaks every rule."""

    metric: str
    """Name of a value that training logs, such as codebook/usage_window."""
    above: float | None = None
    """Larger values break the rule."""
    below: float | None = None
    """Smaller values break the rule."""
    spike: float | None = None
    """Values of more than so many times the median magnitude of the last `window` logged values that kept the rule
    break it; it holds nothing against any value before there are so many."""
    window: int = 50
    """Logged values; for spike only."""
    patience: int = 1
    """So many logged values in a row must break the rule before anything is done."""
    after: int = 0
    """Values logged before this step are not looked at."""
    action: HealthAction = "warn"
    """`none`: the rule is off. `warn`: a line in log.txt when trouble begins and one when it is over. `stop`: ends the
    run with status 1. `rollback`: continues from the newest checkpoint older than the trouble, with other data."""

    def __post_init__(self) -> None:
        """Refuses a rule without a bound, with two, or with one that always or never holds."""
        bounds = {name: value for name in ("above", "below", "spike") if (value := getattr(self, name)) is not None}
        if len(bounds) != 1:
            found = ", ".join(f"{name}={value}" for name, value in bounds.items()) or "no bound"
            raise Refusal(
                f"health.rules: {found} on {self.metric}; expected exactly one of above, below, spike; set others to "
                "null"
            )
        if self.spike is not None and self.spike <= 1:
            raise Refusal(f"health.rules: spike={self.spike} on {self.metric}; expected a factor above 1")
        refuse_below_one("health.rules.NAME", {"window": self.window, "patience": self.patience})
        if self.after < 0:
            raise Refusal(f"health.rules: after={self.after} on {self.metric}; expected a step, 0 or later")


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What is watched during training. Rules read logged values alone, every run.log_every steps."""

    rules: dict[str, HealthRule] = field(default_factory=dict)
    """By name; one whose value is never logged never acts."""
    max_rollbacks: int = 3
    """Rollbacks over the whole life of a run folder; the next one stops the run instead."""
    non_finite: Literal["stop", "rollback"] = "stop"
    """What is done where a loss or gradient is not finite, before the update is made; every step."""

    def __post_init__(self) -> None:
        """Refuses a negative count."""
        if self.max_rollbacks < 0:
            raise Refusal(f"health.max_rollbacks={self.max_rollbacks}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class CodebookUseConfig:
    """How the use of the codebook is measured, and whether dead codes are revived."""

    window: int = 100
    """Optimiser steps over which codebook/usage_window and codebook/perplexity are taken."""
    dead_after: int = 1000
    """A code not used for so many steps is dead; more than window."""
    revive_every: int = 0
    """Steps between revivals: dead codes are moved onto vectors of the batch. 0 never does it, as in the paper."""

    def __post_init__(self) -> None:
        """Refuses spans that contradict each other."""
        refuse_below_one("codebook_use", {"window": self.window})
        if self.dead_after <= self.window:
            raise Refusal(f"codebook_use.dead_after={self.dead_after}: expected more than window={self.window}")
        if self.revive_every < 0:
            raise Refusal(f"codebook_use.revive_every={self.revive_every}: expected at least 0; 0 never revives")


def vqgan_health() -> HealthConfig:
    """Stage 1's rules. They only warn: a threshold that fits every data set would find nothing, and stopping a run
    that would have mended itself costs more than a line in its log.
    """
    return HealthConfig(
        rules={
            # Nearly all vectors fall on a few codes. It happens early, in the first thousands of steps, seldom mends
            # itself, and the pixel error hardly shows it. Before step 2000 a young codebook looks the same.
            "codebook_collapse": HealthRule(metric="codebook/usage_window", below=0.05, after=2000, patience=5),
            # Half the codes of no use: reconstructions still improve, on half the bits that stage 2 has to predict.
            "codebook_decay": HealthRule(metric="codebook/dead_codes", above=0.5, after=2000, patience=5),
            # Divergence, a broken source of data, or the discriminator's start destroying what was learned. The pixel
            # error, since the total jumps by design at adversarial_start. Twice in a row: one batch can be odd.
            "loss_spike": HealthRule(metric="loss/reconstruction", spike=3.0, patience=2),
            # Every clip is told apart, for hundreds of steps: its gradient no longer says what would be better. The
            # mean of both accuracies, since one alone is also 1 for a discriminator that gives one answer to all.
            "discriminator_wins": HealthRule(metric="gan/accuracy", above=0.99, patience=20),
            # No better than a coin, for a thousand steps at the usual log_every: R1 too heavy or a rate too low, and
            # the adversarial loss is noise. The very end of a good run may look like this too.
            "discriminator_blind": HealthRule(metric="gan/accuracy", below=0.52, after=2000, patience=50),
            # Real and generated logits 10 apart: softplus(-5) = 0.007, the discriminator's own loss is spent while
            # its logits still grow. The averages move over a thousand steps, so this is no passing mood.
            "lecam_gap": HealthRule(metric="gan/lecam_gap", above=10.0, patience=5),
            # Gradients grow before losses do, and clipping hides it from the losses.
            "generator_gradient": HealthRule(metric="optim/gradient_norm_generator", spike=10.0, patience=2),
            "discriminator_gradient": HealthRule(metric="optim/gradient_norm_discriminator", spike=10.0, patience=2),
        }
    )


def commit_health() -> HealthConfig:
    """Stage 2's rules; they only warn, see `vqgan_health`."""
    return HealthConfig(
        rules={
            # A diverged transformer falls back to about log(codebook_size), 6.9 nats for 1024 codes, from 3 to 5: no
            # factor of 3 is ever seen. A step's loss depends on its task and mask ratio, so three in a row.
            "loss_spike": HealthRule(metric="loss/total", spike=1.5, patience=3),
            "transformer_gradient": HealthRule(metric="optim/gradient_norm_transformer", spike=10.0, patience=2),
        }
    )

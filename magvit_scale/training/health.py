"""What stops a run before it does harm: values that are not finite, at every step, and the rules of HealthConfig on
what is logged.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import median

import torch
from torch import Tensor

from magvit_scale.config import HealthAction, HealthConfig, HealthRule, Refusal


class NotFiniteError(Refusal):
    """A loss or gradient is not finite. Raised on every rank at the same step, before the update that it spoils."""

    def __init__(self, what: str):
        advice = "lower optim.learning_rate or look at the data"
        super().__init__(f"{what} is not finite; the update was not made; {advice}")


def finite_guard(any_over_ranks: Callable[[bool], list[bool]]) -> Callable[[Mapping[str, Tensor]], None]:
    """Builds the check that a step makes before it updates anything.

    Args:
        any_over_ranks: collective `or`.

    Returns:
        A collective function of named tensors; where one is not finite on any rank it raises NotFiniteError on all of
        them, naming this rank's values.
    """

    def guard(values: Mapping[str, Tensor]) -> None:
        broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if any(any_over_ranks(bool(broken))):
            raise NotFiniteError(", ".join(broken) or "a value of another rank")

    return guard


@dataclass(frozen=True)
class Finding:
    """What a rule has to say about a run."""

    rule: str
    step: int
    """Steps completed when it was found."""
    action: HealthAction
    since: int
    """Step of the first of the values that broke the rule: only older checkpoints are known to be good."""
    words: str
    """One line: rule, metric, value, bound, for how long."""


def as_logged(value: float) -> float:
    """A value as metrics.jsonl holds it, of 6 significant digits."""
    return float(f"{value:.6g}")


class Health:
    """The rules of a run over what it logs.

    Holds no collectives: fed with the same values, which means over ranks are, every rank finds the same. What it
    remembers is a function of the logged values, so it is not in a checkpoint: `replay` reads it out of metrics.jsonl.
    """

    def __init__(self, config: HealthConfig):
        self.config = config
        self._watches = _watches(config)

    def observe(self, step: int, values: Mapping[str, float]) -> list[Finding]:
        """Takes one line of logged values.

        Args:
            step: steps completed; larger than at the last call.
            values: by name; the same on every rank, so none that the main rank alone has, such as validation's.

        Returns:
            What the loop must log and do. A rule that warns is found once when trouble begins and once when it is
            over; one that stops or rolls back is found at every line until it is over, so that a stopped run that is
            started again stops again.
        """
        found = [
            watch.judge(step, as_logged(values[watch.rule.metric]))
            for watch in self._watches
            if watch.rule.metric in values
        ]
        return [finding for finding in found if finding is not None]

    def judge_not_finite(self, step: int, error: NotFiniteError) -> Finding:
        """What to do where the guard refused an update; `step` counts the completed ones."""
        return Finding("non_finite", step + 1, self.config.non_finite, step + 1, f"step {step + 1}: {error}")

    def replay(self, lines: Iterable[str], until: int) -> None:
        """Forgets everything and takes the lines of metrics.jsonl of steps up to `until`, the step that is resumed.

        From then on it finds what it would have found without the break. Lines must be the same on every rank: give
        all of them what the main rank read. Half a line, which a kill leaves at the end, is passed over.
        """
        self._watches = _watches(self.config)
        for line in lines:
            if line.rstrip().endswith("}") and (values := json.loads(line))["step"] <= until:
                self.observe(values["step"], values)

    def waiting(self) -> str:
        """One line that names the rules whose value was not logged so far; empty where there is none.

        For after the first log, the earliest moment that can show a misspelt metric. At the end it would come days
        late; a value that only begins later, such as the discriminator's, is rightly named as not logged yet.
        """
        names = [f"{watch.rule.metric} ({watch.name})" for watch in self._watches if not watch.is_seen]
        return f"health: not logged so far, so not watched: {', '.join(names)}" if names else ""


def _watches(config: HealthConfig) -> list["_Watch"]:
    return [_Watch(name, rule) for name, rule in config.rules.items() if rule.action != "none"]


class _Watch:
    """One rule and what it remembers."""

    def __init__(self, name: str, rule: HealthRule):
        self.name, self.rule = name, rule
        self.kept: deque[float] = deque(maxlen=rule.window)
        """The last values that kept the rule. Those that broke it stay out: a loss that jumps and stays high would
        else become its own measure, and be called well again after half a window."""
        self.streak = self.since = 0
        self.trouble = ""
        self.is_seen = False

    def judge(self, step: int, value: float) -> Finding | None:
        self.is_seen = True
        if step < self.rule.after:
            return None
        trouble = self._trouble(value)
        return self._broken(step, value, trouble) if trouble else self._well(step, value)

    def _trouble(self, value: float) -> str:
        """What is wrong with a value, in words; empty where nothing is."""
        rule = self.rule
        if not isfinite(value):
            return "not finite"
        if rule.above is not None:
            return f"above {rule.above:.6g}" if value > rule.above else ""
        if rule.below is not None:
            return f"below {rule.below:.6g}" if value < rule.below else ""
        assert rule.spike is not None, "HealthRule has exactly one bound"
        if len(self.kept) < rule.window:
            return ""
        usual = median(map(abs, self.kept))
        return f"above {rule.spike:.6g} times the usual {usual:.6g}" if value > rule.spike * usual else ""

    def _broken(self, step: int, value: float, trouble: str) -> Finding | None:
        self.streak += 1
        if self.streak == 1:
            self.since = step
        if self.streak == self.rule.patience:
            self.trouble = trouble
        is_silent = self.streak > self.rule.patience and self.rule.action == "warn"
        if self.streak < self.rule.patience or is_silent:
            return None
        return self._finding(step, self.rule.action, f"{value:.6g} is {trouble}")

    def _well(self, step: int, value: float) -> Finding | None:
        self.kept.append(value)
        was_found = self.streak >= self.rule.patience
        finding = self._finding(step, "warn", f"{value:.6g} is no longer {self.trouble}") if was_found else None
        self.streak = 0
        return finding

    def _finding(self, step: int, action: HealthAction, what: str) -> Finding:
        span = f"{self.streak} logged value{'s' * (self.streak > 1)} from step {self.since} on"
        words = f"step {step}: {self.rule.metric}={what}, after {span} (health.rules.{self.name})"
        return Finding(self.name, step, action, self.since, words)

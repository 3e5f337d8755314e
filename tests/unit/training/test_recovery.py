"""What is done about trouble: nothing, a line, the end, or the way back."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from magvit_scale.config import HealthAction, HealthConfig, Refusal
from magvit_scale.training import distributed, recovery
from magvit_scale.training.health import Finding
from magvit_scale.training.retention import latest
from magvit_scale.training.run import Run
from tests.unit.training.conftest import ALONE, build_state, save


@dataclass
class Notes:
    """The tracker's part of it."""

    lines: list[str] = field(default_factory=list)

    def note(self, *lines: str) -> None:
        self.lines += lines


class Recovery:
    """A run folder with the checkpoints of three steps, and what `act` does in it."""

    def __init__(self, folder: Path, max_rollbacks: int = 3) -> None:
        self.folder, self.notes, self.waited = folder, Notes(), 0
        for step in (3, 6, 9):
            save(folder / "checkpoints", step, build_state(1))
        config: Any = SimpleNamespace(health=HealthConfig(max_rollbacks=max_rollbacks))
        unused: Any = None
        writer: Any = SimpleNamespace(wait=self.wait)
        self.run = Run(config, folder, ALONE, unused, writer, unused, unused)

    def wait(self) -> None:
        self.waited += 1

    def act(self, *found: Finding) -> str:
        return recovery.act(self.run, found, self.notes)  # type: ignore[arg-type]

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step_*"))

    def rollbacks(self) -> list[dict[str, Any]]:
        path = self.folder / "rollbacks.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "tell", lambda text: text)


def finding(action: HealthAction, since: int = 7, step: int = 10) -> Finding:
    return Finding("spike", step, action, since, f"{action} since {since}")


@pytest.mark.parametrize("found", [[], [finding("warn")], [finding("warn"), finding("warn", 8)]])
def test_a_warning_is_a_line(tmp_path: Path, found: list[Finding]) -> None:
    place = Recovery(tmp_path)
    assert place.act(*found) == "done"
    assert place.notes.lines == [one.words for one in found]
    assert (place.steps(), place.rollbacks()) == ([3, 6, 9], [])


def test_a_stop_is_stronger_than_a_rollback_and_everything_is_noted_before(tmp_path: Path) -> None:
    place = Recovery(tmp_path)
    with pytest.raises(Refusal, match=r"^stop since 8$"):
        place.act(finding("warn"), finding("rollback"), finding("stop", 8))
    assert place.notes.lines == ["warn since 7", "rollback since 7", "stop since 8"]
    assert (place.steps(), place.rollbacks()) == ([3, 6, 9], [])


@pytest.mark.parametrize(("since", "target"), [(10, 9), (9, 6), (7, 6), (6, 3), (4, 3)])
def test_a_rollback_forgets_what_is_not_older_than_the_trouble(tmp_path: Path, since: int, target: int) -> None:
    place = Recovery(tmp_path)
    assert place.act(finding("rollback", since)) == "rolled back"
    assert place.steps() == [step for step in (3, 6, 9) if step <= target]
    assert latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"step_0000000{target}"
    assert place.rollbacks() == [{"rule": "spike", "found": 10, "resumed": target}]
    assert place.waited == 1


def test_it_does_not_go_back_to_an_incomplete_checkpoint(tmp_path: Path) -> None:
    place = Recovery(tmp_path)
    (tmp_path / "checkpoints" / "step_00000006" / "COMPLETE").unlink()
    assert place.act(finding("rollback", 8)) == "rolled back"
    assert place.rollbacks()[0]["resumed"] == 3
    assert latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step_00000003"


def test_with_none_older_nothing_is_lost(tmp_path: Path) -> None:
    place = Recovery(tmp_path)
    with pytest.raises(Refusal, match=r"^rollback since 3; no checkpoint is older than the trouble$"):
        place.act(finding("rollback", 3))
    assert (place.steps(), place.rollbacks()) == ([3, 6, 9], [])


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_so_many_rollbacks_and_no_more(tmp_path: Path, allowed: int) -> None:
    place = Recovery(tmp_path, allowed)
    for _ in range(allowed):
        assert place.act(finding("rollback", 10)) == "rolled back"
    with pytest.raises(Refusal, match=rf"{allowed} rollbacks were made, and health\.max_rollbacks allows no more"):
        place.act(finding("rollback", 10))
    assert (place.steps(), len(place.rollbacks())) == ([3, 6, 9], allowed)

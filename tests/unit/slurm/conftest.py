"""A chain of tiny stages in a folder of its own, and the launcher as a program."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm import snapshot
from tests.unit.slurm.fake_slurm import FakeSlurm

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = "tests.unit.slurm.stage_programs"


class Chain:
    """Writes a pipeline configuration and starts the launcher on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "run"
        self.config = folder / "chain.yaml"
        self.stages: dict[str, dict[str, Any]] = {}

    def add(self, name: str, *overrides: str, **settings: Any) -> None:
        overrides = (f"output={{root}}/{name}", *overrides)
        self.stages[name] = {"program": PROGRAM, "overrides": list(overrides), **settings}
        self.write()

    def add_then(self, name: str, *overrides: str, **settings: Any) -> None:
        """Another program for the last stage's processes, with an output of its own."""
        called = {"program": PROGRAM, "overrides": [f"output={{root}}/{name}", *overrides], **settings}
        next(reversed(self.stages.values())).setdefault("then", []).append(called)
        self.write()

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump({"root": str(self.root), "stages": self.stages}, sort_keys=False))

    def start(self, *arguments: str, **settings: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "slurm.launch", str(self.config), *arguments]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job in a shell's background ignores SIGINT, and would hand that down to the launcher under test.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **settings,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        launcher = self.start(*arguments)
        out, err = launcher.communicate(timeout=60)
        return launcher.returncode, out, err

    def runs(self, stage: str, rank: int = 0) -> list[str]:
        """World size seen at each run of a stage's rank."""
        path = self.root / stage / f"runs.{rank}"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Commands of SLURM that answer from files; the launcher copies a checkout of nothing."""
    for name in snapshot.COPIED:
        (tmp_path / "checkout" / name).mkdir(parents=True)
    monkeypatch.setattr(snapshot, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("PYTHONPATH", "")  # the launcher writes to it
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return FakeSlurm(tmp_path / "bin")


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what changes the working directory: it is back at the end."""
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    import time

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "condition did not come true in 30 s"
            time.sleep(0.05)

    return wait

"""Chains of stages on the test cluster, and what befalls them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slurm.attempts import read_ledger
from slurm.stages import Stage, load_stage, read_marker
from tests.slurm.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINS = "magvit_scale.train_commit"
PATIENCE_S = 240.0
STANDARD = {"mem_gb": 1, "time_limit_minutes": 60, "signal_delay_s": 10, "preflight": False}


@dataclass
class Chain:
    """A chain in a folder of its own."""

    cluster: Cluster
    folder: Path
    stages: dict[str, dict[str, Any]]
    resources: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.folder / "run"

    def write(self) -> Path:
        """The chain's configuration."""
        path = self.folder / "chain.yaml"
        content = {"root": str(self.root), "cluster": "slurm", "stages": self.stages, "resources": self.resources}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def launch(self, *arguments: str) -> str:
        return command("slurm.launch", str(self.write()), *arguments)

    def stage(self, name: str) -> Stage:
        return load_stage(self.root / "stages", name)

    def job(self, name: str) -> str:
        return str(read_marker(self.stage(name).started_marker)["job_id"])

    def finished(self, name: str, seconds: float = PATIENCE_S) -> dict[str, str]:
        """Waits for the end of a stage's job, which must be a good one; what SLURM says of it."""
        told = self.cluster.wait(self.job(name), ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), seconds)
        assert told["JobState"] == "COMPLETED", self.describe()
        assert self.stage(name).is_finished, self.describe()
        return told

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        events = read_ledger(self.stage(name))
        return [event for event in events if event["event"] == kind]

    def describe(self) -> str:
        return command("slurm.status", str(self.root), "--lines=40")

    def reaches(self, step: int, name: str = "train") -> None:
        """Waits until the training stage has logged a step."""
        metrics = self.root / name / "metrics.jsonl"
        eventually(
            f"step {step} in {metrics}",
            lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(),
            describe=self.describe,
        )


def command(program: str, *arguments: str, status: int = 0) -> str:
    """Runs a program of the project as a user on a login node; what it said."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


def eventually(
    what: str, condition: Callable[[], bool], seconds: float = PATIENCE_S, describe: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{describe()}"
        time.sleep(0.1)


def signal_ranks(job_id: str, number: signal.Signals, *ranks: int) -> None:
    """To the processes of a running job, found by what SLURM has put into their environment; no rank means all."""
    for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]:
        if b"submitit.core._submit" in _read(pid, "cmdline"):
            told = dict(item.split("=", 1) for item in _environment(pid) if "=" in item)
            # srun, too, names the program and has the job's variables, but none of a step.
            is_rank = told.get("SLURM_JOB_ID") == job_id and "SLURM_STEP_NODELIST" in told
            if is_rank and (not ranks or int(told["SLURM_PROCID"]) in ranks):
                os.kill(pid, number)


def _environment(pid: int) -> set[str]:
    return set(_read(pid, "environ").decode(errors="replace").split("\0"))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""

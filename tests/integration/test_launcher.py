"""A training stage of two processes under the real launcher, killed in the middle and continued."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from magvit_scale.training.retention import latest
from tests.integration.alike import assert_ends_alike, timeless
from tests.integration.conftest import Road
from tests.integration.test_interruptions import REPOSITORY
from tests.integration.tiny_runs import TinyRuns

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS, KILLED_AFTER, CHECKPOINT_EVERY = 40, 12, 5


def write_pipeline(road: Road, path: Path) -> None:
    run = ["run.folder={root}/vqgan_2d", f"run.checkpoint_every={CHECKPOINT_EVERY}", "run.sample_every=0"]
    stage = {"program": "magvit_scale.train_vqgan", "tasks": 2, "steps": STEPS, "overrides": [*road.vqgan_2d(), *run]}
    path.write_text(yaml.safe_dump({"stages": {"vqgan_2d": stage}}))


def start(pipeline: Path, root: Path) -> "subprocess.Popen[str]":
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "slurm.launch", str(pipeline), f"root={root}"],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)


def num_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def processes_of(root: Path) -> list[int]:
    """Living processes that have a file of the run folder open or in their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(link) for link in (process / "fd").iterdir()]
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(name.startswith(str(root)) for name in opened) or str(root) in command:
            found.append(int(process.name))
    return found


def test_a_killed_launcher_takes_its_ranks_along_and_the_same_command_ends_alike(road: Road, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline.yaml"
    write_pipeline(road, pipeline)
    roots = {name: tmp_path / name for name in ("undisturbed", "killed")}
    launchers = {name: start(pipeline, root) for name, root in roots.items()}
    run = roots["killed"] / "vqgan_2d"
    eventually(lambda: num_logged(run) >= KILLED_AFTER or launchers["killed"].poll() is not None, "twelve steps")
    launchers["killed"].send_signal(signal.SIGKILL)
    launchers["killed"].communicate(timeout=30)
    eventually(lambda: not processes_of(roots["killed"]), "the end of both ranks")
    assert KILLED_AFTER <= num_logged(run) < STEPS, "it was not killed in the middle"
    assert not (run / "export").exists()
    newest = latest(run / "checkpoints")
    assert newest is not None
    resumed_at = int(newest.name.removeprefix("step_"))
    assert resumed_at >= KILLED_AFTER // CHECKPOINT_EVERY * CHECKPOINT_EVERY

    again = start(pipeline, roots["killed"])
    for launcher in (again, launchers["undisturbed"]):
        out, err = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, out + err
    assert f"step {resumed_at} of {STEPS}, 2 ranks on cpu" in (run / "log.txt").read_text()
    assert [line["step"] for line in timeless(run)] == list(range(1, STEPS + 1))
    assert_ends_alike(run, roots["undisturbed"] / "vqgan_2d")


def test_a_run_that_follows_another_in_its_processes_ends_as_one_of_its_own(
    tiny_runs: TinyRuns, tmp_path: Path
) -> None:
    """What the first leaves behind - a group, DeepSpeed's handles, ZeRO 3's linear layers - must not reach it."""

    def called(folder: str, program: str, stage: int) -> dict[str, object]:
        verb, *overrides = tiny_runs.of(program, tmp_path / folder / program, stage)
        return {"program": f"magvit_scale.{verb.replace('-', '_')}", "overrides": overrides}

    together = called("together", "vqgan", 3) | {"then": [called("together", "commit", 2)]}
    stages = {"together": together, "apart": called("apart", "commit", 2)}
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(yaml.safe_dump({"stages": {name: stage | {"tasks": 2} for name, stage in stages.items()}}))
    launcher = start(pipeline, tmp_path / "chain")
    out, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, out + err
    assert_ends_alike(tmp_path / "together" / "commit", tmp_path / "apart" / "commit")

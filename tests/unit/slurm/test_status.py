"""What is said of a chain: its states, steps, restarts with their reasons."""

import json
import os
import re
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.files import write_json
from slurm import attempts, launch, status
from slurm.chain import open_chain
from slurm.stages import load_stage
from tests.unit.slurm.conftest import Chain
from tests.unit.slurm.fake_slurm import FakeSlurm

pytestmark = pytest.mark.usefixtures("at_home")
Capture = pytest.CaptureFixture[str]


def said(chain: Chain, capsys: Capture, *options: str) -> list[list[str]]:
    """The lines, as their cells that are not empty."""
    capsys.readouterr()
    status.main([str(chain.root), *options])
    return [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]


def log(chain: Chain, stage: str, *lines: dict[str, float]) -> None:
    path = chain.root / stage / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_chain_that_ran_here(chain: Chain, capsys: Capture) -> None:
    chain.add("made")
    chain.add("train", f"run.folder={chain.root}/train", "run.steps=20", "refuse_rank=0")
    chain.add("later")
    with pytest.raises(SystemExit):
        launch.main([str(chain.config), "cluster=debug"])
    log(chain, "train", {"step": 4, "loss/total": 2.5, "perf/step_s": 225.5})
    assert said(chain, capsys) == [
        ["stage", "job", "state", "step", "loss", "s/step", "left", "restarts", "where"],
        ["made", "finished in 0:00:00"],
        ["train", "not finished", "4/20", "2.5", "226", "1:00:08"],
        ["later", "not started"],
    ]


def test_jobs_in_the_queue(chain: Chain, fake_slurm: FakeSlurm, capsys: Capture) -> None:
    chain.add("made")
    chain.add("shards", array=2)
    chain.add("train", f"run.folder={chain.root}/train")
    chain.add("failed")
    launch.main([str(chain.config), "cluster=slurm"])
    write_json(chain.root / "stages" / "made.json", load_stage(chain.root / "stages", "made").record(seconds=61.6))
    log(chain, "train", {"step": 4})
    fake_slurm.queue(
        "42_0|RUNNING|None|0:10|1-00:00:00|2026-01-01T00:00:00|node1",
        "42_1|PENDING|Resources|0:00|1-00:00:00|N/A|",
        "43|PENDING|Dependency|0:00|1-00:00:00|N/A|",
        "44|FAILED|NonZeroExitCode|0:01|1-00:00:00|N/A|node2",
    )
    assert said(chain, capsys)[1:] == [
        ["made", "41", "finished in 0:01:02"],
        ["shards.0", "42_0", "running 0:10 of 1-00:00:00", "node1"],
        ["shards.1", "42_1", "pending", "(Resources)"],
        ["train", "43", "pending", "4", "(Dependency)"],
        ["failed", "44", "failed", "node2"],
    ]
    assert "--jobs=41,42_0,42_1,43,44" in fake_slurm.calls("squeue")[-1]


def test_restarts_with_their_reasons(
    chain: Chain, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    chain.add("train", f"run.folder={chain.root}/train")
    launch.main([str(chain.config), "cluster=slurm"])
    stage = load_stage(chain.root / "stages", "train")
    for restart, state in enumerate(["RUNNING", None, "CANCELLED"]):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        attempts.begin(stage, ["node1"])
        if state:
            attempts.end(stage, 137, state)
    _, row, *troubles = said(chain, capsys)
    assert row == ["train", "41", "not finished", "2"]
    when = r"train: \d\d-\d\d \d\d:\d\d:\d\d at step_00000000: "
    expected = [
        r"a rank or node was lost \(srun ended with 137\); started again",
        "started again by SLURM, its batch script had no time to say why",
        r"ended by SLURM \(node failure, requeue or scancel\), job CANCELLED",
    ]
    for (line,), why in zip(troubles, expected, strict=True):
        assert re.fullmatch(when + why, line)


def test_the_ends_of_the_logs_of_what_is_not_finished(chain: Chain, fake_slurm: FakeSlurm, capsys: Capture) -> None:
    chain.add("shards", array=2)
    launch.main([str(chain.config), "cluster=slurm"])
    logs = chain.root / "stages" / "logs" / "shards"
    for name in ("39_0", "41_0_0", "41_1_0", "41_0_1"):
        (logs / f"{name}_log.err").write_text(f"first\nsubmitit INFO (today) - hello\nsecond of {name}\n")
        os.utime(logs / f"{name}_log.err", (0, 0) if name == "41_0_0" else None)
    lines = [" ".join(cells) for cells in said(chain, capsys, "--lines=1")]
    assert lines[3:] == [
        f"== {logs}/41_0_0_log.err ==", "second of 41_0_0", f"== {logs}/41_1_0_log.err ==", "second of 41_1_0"
    ]  # fmt: skip
    assert len(said(chain, capsys, "--lines=0")) == 3


def test_where_no_chain_was_started(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        status.main([str(tmp_path)])
    assert str(refusal.value) == (
        f"{tmp_path}: no chain was started there; expected the root= of a python -m slurm.launch"
    )


def test_the_record_of_a_chain_leads_to_where_it_was_started(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.add("only")
    monkeypatch.chdir(tmp_path)
    launch.main(["chain.yaml", "root=run", "cluster=debug"])
    monkeypatch.chdir(tmp_path / "run")
    opened = open_chain(".")
    assert (opened.root, opened.cluster, opened.names) == (tmp_path / "run", "debug", ["only"])
    assert opened.arguments == ["chain.yaml", "root=run", "cluster=debug"]
    assert Path.cwd() == tmp_path
    assert [stage.name for stage in opened.started] == ["only"]
    assert opened.jobs() == {}

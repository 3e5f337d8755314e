"""Which ends of a job lead to another start."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import LaunchConfig, Refusal, load
from magvit_scale.files import write_json
from slurm import attempts
from slurm.job import forget_ranks, read_notes
from slurm.plan import plan
from slurm.preflight import UNFIT_STATUS, unfit_nodes
from slurm.stages import Call, Stage
from tests.unit.slurm.conftest import Chain

STOPPED, LOST = 75, 76


@pytest.fixture
def stage(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    chain.add("train", f"run.folder={chain.root}/train")
    (made,) = plan(load(LaunchConfig, [chain.config]))
    write_json(made.started_marker, made.record(job_id="7"))
    return made


REFUSED, RAISED = "refused", "raised"


def note(stage: Stage, *ends: int | str, attempt: str = "7-2") -> None:
    for rank, end in enumerate(ends):
        what = {"status": end if isinstance(end, int) else 1, "why": "no disk", "is_refusal": end == REFUSED}
        write_json(stage.rank_marker(attempt, rank), what | {"host": f"node{rank}", "time": 10 - rank})


ASKED, LOST_ONE = "asked to stop (time limit, preemption or signal)", "a rank or node was lost (srun ended with 137)"
OF_SLURM = "ended by SLURM (node failure, requeue or scancel), job "


@pytest.mark.parametrize(
    ("ends", "state", "goes_on", "why"),
    [
        ([STOPPED, STOPPED], "RUNNING", True, ASKED),
        ([STOPPED, STOPPED], "TIME_LIMIT", True, ASKED),
        ([STOPPED, STOPPED], "PENDING", False, f"{OF_SLURM}PENDING"),
        ([STOPPED, STOPPED], "CANCELLED", False, f"{OF_SLURM}CANCELLED"),
        ([], "TIME_LIMIT", True, "killed at the time limit, without having saved"),
        ([LOST], "RUNNING", True, LOST_ONE),
        ([], "RUNNING", True, LOST_ONE),
        ([STOPPED], "RUNNING", True, LOST_ONE),
        ([RAISED], "RUNNING", True, f"{LOST_ONE}; rank 0: no disk"),  # the other rank has left no word
        ([RAISED, RAISED], "RUNNING", False, "rank 1 on node1 failed: no disk"),  # the first to fail
        ([LOST, RAISED], "RUNNING", False, "rank 1 on node1 failed: no disk"),
        ([REFUSED], "RUNNING", False, "rank 0 on node0 failed: no disk"),
        ([STOPPED, REFUSED], "RUNNING", False, "rank 1 on node1 failed: no disk"),
    ],
)
def test_decisions(stage: Stage, ends: list[int | str], state: str, goes_on: bool, why: str) -> None:
    note(stage, REFUSED, REFUSED, attempt="7-1")
    note(stage, *ends)
    assert attempts.decide(stage, 137, state, read_notes(stage, "7-2"), 2, []) == (goes_on, why)


def test_what_is_finished_or_cancelled_does_not_start_again(stage: Stage) -> None:
    attempts.begin(stage, ["node1"])
    note(stage, STOPPED)
    stage.cancelled_marker.touch()
    assert attempts.end(stage, STOPPED, "RUNNING") == 1
    with pytest.raises(Refusal, match=r"was cancelled; python -m slurm\.resubmit"):
        attempts.begin(stage, ["node1"])
    stage.marker.touch()
    assert attempts.end(stage, 139, "RUNNING") == attempts.FINISHED_STATUS  # a crash after the work was done
    assert attempts.begin(stage, ["node1"]) == attempts.FINISHED_STATUS
    assert [event["why"] for event in attempts.read_ledger(stage)[1:]] == ["cancelled", "finished"]


def test_a_good_end_of_all_tasks_finishes_the_stage_whatever_the_ranks_have_seen_of_each_other(stage: Stage) -> None:
    attempts.begin(stage, ["node1"])
    assert attempts.end(stage, 0, "RUNNING") == attempts.FINISHED_STATUS
    assert stage.is_finished


def test_starts_without_progress_come_to_an_end_and_progress_resets_the_count(stage: Stage, chain: Chain) -> None:
    def checkpoint(step: int) -> None:
        folder = chain.root / "train" / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()

    for step in (0, 0, 10, 10, 10, 10):
        if step and not (chain.root / "train" / "checkpoints").exists():
            checkpoint(step)
        attempts.begin(stage, ["node1"])
        assert attempts.end(stage, 137, "RUNNING") == 0
    with pytest.raises(Refusal, match="4 starts have ended at step_00000010, expected progress after 3 restarts"):
        attempts.begin(stage, ["node1"])
    checkpoint(20)
    attempts.begin(stage, ["node1"])
    reached = [event["reached"] for event in attempts.read_ledger(stage) if event["event"] == "start"]
    assert reached == ["step_00000000"] * 2 + ["step_00000010"] * 4 + ["step_00000020"]


def test_what_follows_in_a_stages_processes_is_progress_too(stage: Stage, tmp_path: Path) -> None:
    stage = replace(stage, calls=(*stage.calls, Call("any", (f"output={tmp_path / 'made'}",))))
    for _ in range(5):
        attempts.begin(stage, ["node1"])
        (tmp_path / "made").mkdir(exist_ok=True)
        Path(tmp_path, "made", f"{len(attempts.read_ledger(stage))}").touch()
        assert attempts.end(stage, 137, "RUNNING") == 0
    assert attempts.read_ledger(stage)[-1]["reached"] == "step_00000000, 5 files"


@pytest.mark.parametrize("exclude", [False, True])
def test_a_node_that_preflight_finds_unfit_is_named_and_left_out_on_request(
    stage: Stage, exclude: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    object.__setattr__(stage.resources, "exclude_bad_nodes", exclude)
    object.__setattr__(stage.resources, "exclude", "node9")
    attempts.begin(stage, ["node1", "node2", "node3"])
    note(stage, UNFIT_STATUS, UNFIT_STATUS)
    report(stage, "node1", [])
    report(stage, "node2", ["cannot write"])
    assert attempts.end(stage, UNFIT_STATUS, "RUNNING") == (0 if exclude else 1)
    out, err = capsys.readouterr()
    assert "preflight found node2, node3 unfit" in err
    assert out == ("node9,node2,node3\n" if exclude else "")


def test_nodes_that_were_left_out_before_stay_out(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    object.__setattr__(stage.resources, "exclude_bad_nodes", True)
    for bad in ("node2", "node3"):
        attempts.begin(stage, ["node1", bad])
        note(stage, UNFIT_STATUS, 127)
        report(stage, "node1", [])
        assert attempts.end(stage, 127, "RUNNING") == 0
    assert capsys.readouterr().out.splitlines() == ["node2", "node2,node3"]


def test_where_all_nodes_are_unfit_none_is_to_blame(stage: Stage) -> None:
    report(stage, "node1", ["no shards"])
    report(stage, "node2", ["no shards"])
    assert unfit_nodes(stage, "7-2", ["node1", "node2"]) == []


def report(stage: Stage, host: str, problems: list[str]) -> None:
    write_json(
        Path(stage.folder, "preflight", "train.7-2", f"{host}.json"),
        {"host": host, "problems": problems, "is_final": True},
    )


def test_the_batch_script_asks_by_name(stage: Stage, chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(chain.root / "stages")
    with pytest.raises(SystemExit) as begin:
        attempts.main(["begin", folder, "train", "node1", "node2"])
    assert begin.value.code == 0
    with pytest.raises(SystemExit) as end:
        attempts.main(["end", folder, "train", "137", "RUNNING"])
    assert end.value.code == 0
    with stage.ledger.open("a") as ledger:
        ledger.write('\n{"event": "sta')
    start, stop = attempts.read_ledger(stage)
    expected: dict[str, Any] = {"job": "7", "attempt": "7-2", "reached": "step_00000000"}
    assert start | expected | {"event": "start", "nodes": ["node1", "node2"]} == start
    assert stop | expected | {"event": "end", "status": 137, "goes_on": True} == stop
    forget_ranks(stage)

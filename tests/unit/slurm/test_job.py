"""One process of a stage: who it is, how its end is noted, and when the stage is finished."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from magvit_scale.config import LaunchConfig, Refusal, load
from magvit_scale.files import write_json
from magvit_scale.training.launched import port_of
from slurm import job
from slurm.plan import plan
from slurm.stages import Stage, read_marker
from tests.unit.slurm.conftest import Chain


@pytest.fixture
def stage(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(job, "_num_cores", lambda: 8)
    chain.add("train", resources={"interface": "ib0"})
    return plan(load(LaunchConfig, [chain.config]))[0]


def here(**facts: Any) -> Any:
    """Where submitit says that this process is: the second of two on the second of two nodes."""
    standard = {"global_rank": 3, "local_rank": 1, "num_tasks": 4, "num_nodes": 2, "hostnames": ["node1", "node2"]}
    return SimpleNamespace(**standard | facts)


def test_a_rank_of_a_slurm_job_meets_the_others_on_the_first_node(stage: Stage) -> None:
    assert job.rank_environment(here(), stage, None) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": str(port_of(7, 2)),
        "OMP_NUM_THREADS": "4",
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
    }


def test_local_ranks_meet_on_this_machine_and_a_number_of_threads_that_is_given_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = job.rank_environment(here(), stage, 4711)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "4711")
    assert "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize(
    ("end", "status", "why"),
    [
        (None, 0, ""),
        (SystemExit(75), 75, ""),
        (SystemExit("program: no disk"), 1, "program: no disk"),
        (Refusal("no disk"), 1, "Refusal: no disk"),
    ],
)
def test_a_rank_notes_how_it_has_ended(stage: Stage, end: BaseException | None, status: int, why: str) -> None:
    def work() -> None:
        with job._noted(stage, 3):
            if end:
                raise end

    if end:
        with pytest.raises(type(end)):
            work()
    else:
        work()
    note = json.loads(stage.rank_marker("7-2", 3).read_text())
    assert (note["status"], note["why"]) == (status, why)


def test_the_stage_is_finished_when_every_rank_of_one_attempt_has_ended_well(stage: Stage) -> None:
    write_json(stage.started_marker, stage.record(job_id="7"))
    for attempt, rank, status in (("7-2", 0, 0), ("7-1", 1, 0), ("7-2", 1, 75)):
        write_json(stage.rank_marker(attempt, rank), {"status": status})
    job.finish(stage, 2, 1.0, 0.5)
    assert not stage.is_finished
    write_json(stage.rank_marker("7-2", 1), {"status": 0})
    job.finish(stage, 2, 1.26, 0.756)
    known = {"seconds": 1.3, "main_seconds": 0.76, "job_id": "7"}
    assert read_marker(stage.marker) | known == read_marker(stage.marker)
    assert sorted(job.read_notes(stage, "7-2")) == [0, 1]
    job.forget_ranks(stage)
    assert not list(Path(stage.folder).glob("*.rank*.json"))
    assert stage.is_finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_before_the_program_has_its_own_handlers_stops_the_rank(number: signal.Signals) -> None:
    before: dict[int, Callable[..., Any] | int | None] = {
        each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)
    }
    try:
        job.stop_when_asked()
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(number)
        assert end.value.code == 75
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

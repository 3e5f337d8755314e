"""Who a process is, as srun, a batch script, torchrun or nobody tells it."""

import os
from pathlib import Path

import pytest

from magvit_scale.training.launched import ALONE, FIRST_PORT, NUM_PORTS, complete_environment, port_of

SRUN = {
    "SLURM_JOB_ID": "100", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "node[7-8]", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NTASKS": "8",
}  # fmt: skip


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ALONE]:
        monkeypatch.delenv(name)
    for name in ALONE:  # so that what the code sets is forgotten too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nprintf "node7\\nnode8\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "calls"


def completed(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str | None]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    complete_environment()
    return {name: os.environ.get(name) for name in ALONE}


def test_a_task_of_srun_is_one_of_its_ranks(monkeypatch: pytest.MonkeyPatch, scontrol: Path) -> None:
    assert completed(monkeypatch, **SRUN) == {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "node7", "MASTER_PORT": str(port_of(100, 2))
    }  # fmt: skip
    assert scontrol.read_text() == "show hostnames node[7-8]\n"


@pytest.mark.parametrize("missing", ["SLURM_STEP_ID", "SLURM_PROCID"])
def test_a_batch_script_is_alone_whatever_tasks_are_to_come(
    monkeypatch: pytest.MonkeyPatch, scontrol: Path, missing: str
) -> None:
    batch = {name: value for name, value in SRUN.items() if name != missing}
    assert completed(monkeypatch, **batch) == ALONE
    assert not scontrol.exists()


def test_a_single_task_is_alone_and_needs_no_name_of_its_node(monkeypatch: pytest.MonkeyPatch, scontrol: Path) -> None:
    assert completed(monkeypatch, **SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == ALONE
    assert not scontrol.exists()


def test_a_lone_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch) == ALONE
    assert ALONE["WORLD_SIZE"] == "1"


def test_what_torchrun_has_said_holds_under_srun_too(monkeypatch: pytest.MonkeyPatch, scontrol: Path) -> None:
    torchrun = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    assert completed(monkeypatch, **SRUN, **torchrun) == torchrun
    assert not scontrol.exists()


def test_an_address_that_the_user_gives_stays(monkeypatch: pytest.MonkeyPatch, scontrol: Path) -> None:
    found = completed(monkeypatch, **SRUN, MASTER_ADDR="ib-node7", MASTER_PORT="29500")
    assert (found["RANK"], found["MASTER_ADDR"], found["MASTER_PORT"]) == ("5", "ib-node7", "29500")


def test_ports_differ_between_starts_and_between_jobs_side_by_side_and_stay_in_range() -> None:
    for job_id in (1, 4_711, 67_043_328):
        starts = [port_of(job_id + neighbour, start) for neighbour in range(10) for start in range(20)]
        assert len(set(starts)) == 200
        assert min(starts) >= FIRST_PORT
        assert max(starts) < FIRST_PORT + NUM_PORTS
    # Preflight meets NUM_PORTS above, and that has to lie below the ports that Linux gives out by itself.
    assert FIRST_PORT + 2 * NUM_PORTS <= 32_768

"""The batch script around srun, with commands that answer from files."""

import subprocess
from pathlib import Path

import pytest

from slurm.cluster import BATCH_SCRIPT

SCONTROL = """
echo "scontrol $*" >> calls
case "$*" in
  "show hostnames"*) printf "node1\\nnode2\\nnode3\\n" ;;
  *"show job"*) [ -e down ] && { rm down; echo "Unable to contact slurm controller" >&2; exit 1; }
                echo "JobId=7 ${TOLD:-JobState=RUNNING Reason=None Restarts=0}" ;;
esac
"""


class Job:
    """A job of three nodes whose stage would like some number of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, body in {"scontrol": SCONTROL, "sleep": 'echo "sleep $*" >> calls'}.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)

    def run(
        self,
        wanted: int = 3,
        begin: int = 0,
        end: int = 0,
        excluded: str = "",
        program: str = "exit 137",
        **variables: str,
    ) -> int:
        """Exit status of the script; `program` stands where srun is."""
        script = f"""
            attempts() {{
              echo "attempts $*" >> calls
              if [ "$1" = begin ]; then return {begin}; fi
              echo "{excluded}"
              return {end}
            }}
            wanted_nodes={wanted}
            """
        environment = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_NODELIST": "node[1-3]",
            **variables,
        }
        whole = "\n".join([script, *BATCH_SCRIPT.read_text().splitlines(), program])
        return subprocess.run(["bash", "-c", whole], cwd=self.folder, env=environment, check=False).returncode

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


BEGUN = ["scontrol show hostnames node[1-3]", "attempts begin node1 node2 node3"]
ENDED = ["scontrol --oneliner show job 7", "attempts end 137 RUNNING"]


def test_what_goes_on_is_requeued_and_keeps_the_status_of_srun(job: Job) -> None:
    assert job.run(end=0) == 137
    assert job.calls == [*BEGUN, *ENDED, "scontrol requeue 7"]


def test_what_does_not_go_on_is_left(job: Job) -> None:
    assert job.run(end=1) == 137
    assert job.calls == [*BEGUN, *ENDED]


def test_bad_nodes_are_left_out_of_the_next_start(job: Job) -> None:
    job.run(excluded="node2")
    assert job.calls[-2:] == ["scontrol requeue 7", "scontrol update JobId=7 ExcNodeList=node2"]


def test_what_may_not_begin_ends_at_once(job: Job) -> None:
    assert job.run(begin=1) == 1
    assert job.calls == BEGUN


@pytest.mark.parametrize(("wanted", "used"), [(3, 3), (4, 2), (5, 1), (6, 3)])
def test_as_many_nodes_are_used_as_divide_those_that_it_would_like(job: Job, wanted: int, used: int) -> None:
    assert job.run(wanted, program="echo $SLURM_NNODES > used; exit 0") == 0
    assert (job.folder / "used").read_text() == f"{used}\n"
    assert job.calls[1] == " ".join(["attempts begin", "node1", "node2", "node3"][: used + 1])


def test_a_controller_that_starts_anew_is_asked_again(job: Job) -> None:
    (job.folder / "down").touch()
    assert job.run() == 137
    assert job.calls == [*BEGUN, ENDED[0], "sleep 5", *ENDED, "scontrol requeue 7"]


def test_nothing_runs_where_the_stage_is_finished(job: Job) -> None:
    assert job.run(begin=3, program="touch ran") == 0
    assert not (job.folder / "ran").exists()


def test_a_finished_stage_ends_well_however_its_processes_have_ended(job: Job) -> None:
    assert job.run(end=3, program="exit 139") == 0
    assert job.calls[-1] == "attempts end 139 RUNNING"


def test_an_element_of_an_array_speaks_of_itself_only(job: Job) -> None:
    job.run(SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2", excluded="node2")
    assert job.calls[2:] == [
        "scontrol --oneliner show job 5_2",
        "attempts end 137 RUNNING",
        "scontrol requeue 5_2",
        "scontrol update JobId=5_2 ExcNodeList=node2",
    ]


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", "TIME_LIMIT"),
        ("JobState=CANCELLED Reason=None Restarts=0", "CANCELLED"),
        ("JobState=RUNNING Reason=None Restarts=1", "REQUEUED"),  # the next start, seen from this one
    ],
)
def test_what_slurm_has_decided(job: Job, told: str, state: str) -> None:
    job.run(TOLD=told)
    assert f"attempts end 137 {state}" in job.calls


def test_sigterm_to_the_script_waits_for_what_the_ranks_save(job: Job) -> None:
    saves = """bash -c 'kill -TERM $PPID; read -t 0.3 <> <(:); touch saved; exit 75'"""
    assert job.run(program=saves) == 75
    assert (job.folder / "saved").exists()
    assert "attempts end 75 RUNNING" in job.calls

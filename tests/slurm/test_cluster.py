"""The cluster is a real one: its nodes are machines of their own, and it does to jobs what clusters do to them."""

import socket
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.processes import wait_until

WAITS = 'echo "restart ${SLURM_RESTART_COUNT:-0} on $(hostname)"; exec sleep 600'
WAITS_AND_LISTENS = 'trap "echo warned" USR2; echo begun; while :; do sleep 0.1; done'


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    common = ["--parsable", f"--output={folder}/%j.log", "--open-mode=append"]
    return cluster.run("sbatch", *common, *options, f"--wrap={script}")


def test_nodes_are_machines_with_names_of_their_own(cluster: Cluster) -> None:
    on_two = ["srun", "--nodes=2", "--nodelist=node1,node3"]
    assert sorted(cluster.run(*on_two, "hostname").split()) == ["node1", "node3"]
    first_processes = cluster.run(*on_two, "cat", "/proc/1/cmdline").replace("\0", " ").split()
    assert {"node1", "node3"} < set(first_processes)
    assert socket.gethostname() not in cluster.nodes


def test_job_of_a_dead_node_runs_again_on_another(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit(cluster, tmp_path, WAITS)
    first = cluster.wait(job_id, ["RUNNING"])["NodeList"]
    cluster.kill_node(first)
    cluster.wait(job_id, ["PENDING"])
    again = cluster.wait(job_id, ["RUNNING"])
    assert again["Restarts"] == "1"
    assert again["NodeList"] in set(cluster.nodes) - {first}


def test_job_runs_on_while_the_controller_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit(cluster, tmp_path, WAITS)
    before = cluster.wait(job_id, ["RUNNING"])
    cluster.settle(job_id)
    cluster.restart_controller()
    after = cluster.show(job_id)
    unchanged = ("JobState", "NodeList", "StartTime", "Restarts")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}


def test_better_partition_preempts_and_the_job_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit(cluster, tmp_path, WAITS_AND_LISTENS, "--signal=B:USR2@30")
    cluster.wait(job_id, ["RUNNING"])
    everything = ["--partition=high", f"--nodes={len(cluster.nodes)}", "--exclusive"]
    better = submit(cluster, tmp_path, "true", *everything)
    cluster.wait(better, ["COMPLETED"])
    assert cluster.wait(job_id, ["RUNNING"])["Restarts"] == "1"
    log = tmp_path / f"{job_id}.log"
    wait_until("the job's second beginning", lambda: log.read_text().count("begun") == 2, 10, log)
    said = [line for line in log.read_text().splitlines() if line in ("begun", "warned")]
    assert said == ["begun", "warned", "begun"]

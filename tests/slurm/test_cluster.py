"""The cluster is a real one: its nodes are machines of their own; what it does to jobs, test_survival.py tells."""

import socket
from pathlib import Path

from tests.slurm.cluster import Cluster

WAITS = 'echo "restart ${SLURM_RESTART_COUNT:-0} on $(hostname)"; exec sleep 600'


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    common = ["--parsable", f"--output={folder}/%j.log", "--open-mode=append"]
    return cluster.run("sbatch", *common, *options, f"--wrap={script}")


def test_nodes_are_machines_with_names_of_their_own(cluster: Cluster) -> None:
    on_two = ["srun", "--nodes=2", "--nodelist=node1,node3"]
    assert sorted(cluster.run(*on_two, "hostname").split()) == ["node1", "node3"]
    first_processes = cluster.run(*on_two, "cat", "/proc/1/cmdline").replace("\0", " ").split()
    assert {"node1", "node3"} < set(first_processes)
    assert socket.gethostname() not in cluster.nodes


def test_job_runs_on_while_the_controller_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    job_id = submit(cluster, tmp_path, WAITS)
    before = cluster.wait(job_id, ["RUNNING"])
    cluster.settle(job_id)
    cluster.restart_controller()
    after = cluster.show(job_id)
    unchanged = ("JobState", "NodeList", "StartTime", "Restarts")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}

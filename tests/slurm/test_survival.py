"""Whatever a cluster does to a training job, it ends in the bytes of a job that was left in peace."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.alike import assert_ends_alike, timeless
from tests.slurm.chains import Chain, command, eventually, signal_ranks
from tests.slurm.cluster import Cluster

Trains = Callable[..., Chain]
STRUCK_AT = 15
"""Step of no checkpoint: they come every ten."""
BETWEEN = 45
"""Steps from one strike to the next."""


def strike_by_user_signal(cluster: Cluster, job: str) -> None:
    cluster.run("scancel", "--signal=USR2", job)


def strike_by_requeue(cluster: Cluster, job: str) -> None:
    cluster.run("scontrol", "requeue", job)


def strike_by_preemption(cluster: Cluster, job: str) -> None:
    cluster.run("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def strike_by_killing_a_rank(cluster: Cluster, job: str) -> None:
    signal_ranks(job, signal.SIGKILL, 1)


def strike_by_cutting_the_power_of_the_first_node(cluster: Cluster, job: str) -> None:
    cluster.kill_node("node1")


def strike_by_cutting_the_power_of_the_second_node(cluster: Cluster, job: str) -> None:
    cluster.kill_node("node2")


ASKED = "asked to stop (time limit, preemption or signal)"
LOST, OF_SLURM = "a rank or node was lost", "ended by SLURM (node failure, requeue or scancel)"


@pytest.mark.parametrize(
    "strikes",
    [
        {strike_by_user_signal: (ASKED,), strike_by_requeue: (OF_SLURM,), strike_by_preemption: (ASKED,)},
        # Whoever notices first that a node is gone.
        {strike_by_killing_a_rank: (LOST,), strike_by_cutting_the_power_of_the_second_node: (LOST, OF_SLURM)},
    ],
)
def test_a_struck_job_starts_again_and_ends_the_same(
    trains: Trains, undisturbed: Path, cluster: Cluster, strikes: dict[Callable[[Cluster, str], None], tuple[str, ...]]
) -> None:
    chain = trains()
    chain.launch()
    for number, strike in enumerate(strikes):
        chain.reaches(STRUCK_AT + number * BETWEEN)
        strike(cluster, chain.job("train"))
        eventually("another start", lambda done=number: len(chain.events("train", "start")) == done + 2)
    assert int(chain.finished("train")["Restarts"]) == len(strikes)
    assert_ends_alike(chain.root / "train", undisturbed)
    reasons = [event["why"] for event in chain.events("train", "end")]
    expected = [*strikes.values(), ("finished",)]
    if len(reasons) < len(expected):  # SLURM saw the node go first, and ended the batch script
        assert "started again by SLURM, its batch script had no time to say why" in chain.describe()
        expected.pop(1)
    assert all(reason.startswith(words) for reason, words in zip(reasons, expected, strict=True))
    assert len({event["attempt"] for event in chain.events("train", "start")}) == len(strikes) + 1


def test_the_power_of_the_first_node_is_cut_and_the_batch_script_with_it(
    trains: Trains, undisturbed: Path, cluster: Cluster
) -> None:
    chain = trains()
    chain.launch()
    chain.reaches(STRUCK_AT)
    cluster.kill_node("node1")
    assert int(chain.finished("train")["Restarts"]) == 1
    assert_ends_alike(chain.root / "train", undisturbed)
    assert [event["nodes"] for event in chain.events("train", "start")] == [["node1", "node2"], ["node2", "node3"]]


def test_a_job_outlives_the_controller(trains: Trains, undisturbed: Path, cluster: Cluster) -> None:
    chain = trains()
    chain.launch()
    chain.reaches(STRUCK_AT)
    cluster.settle(chain.job("train"))
    cluster.restart_controller()
    chain.finished("train")
    assert len(chain.events("train", "start")) == 1
    assert_ends_alike(chain.root / "train", undisturbed)


def test_the_time_limit_is_a_pause(trains: Trains, undisturbed: Path, cluster: Cluster) -> None:
    chain = trains(resources={"time_limit_minutes": 1})
    chain.launch()
    chain.reaches(STRUCK_AT)
    job = chain.job("train")
    # A minute is the shortest limit there is: no machine should be too fast for it. SLURM wakes them with its signal.
    signal_ranks(job, signal.SIGSTOP)
    eventually("another start", lambda: len(chain.events("train", "start")) == 2)
    assert int(chain.finished("train")["Restarts"]) == 1
    assert [event["why"] for event in chain.events("train", "end")] == [ASKED, "finished"]
    assert_ends_alike(chain.root / "train", undisturbed)


def test_with_fewer_nodes_it_goes_on(trains: Trains, undisturbed: Path, cluster: Cluster) -> None:
    chain = trains(nodes=2, min_nodes=1, tasks=1)
    cluster.run("scontrol", "update", "nodename=node3", "state=drain", "reason=test")
    try:
        chain.launch()
        chain.reaches(STRUCK_AT)
        cluster.kill_node("node2")
        chain.finished("train")
    finally:
        cluster.run("scontrol", "update", "nodename=node3", "state=resume")
    assert [event["nodes"] for event in chain.events("train", "start")] == [["node1", "node2"], ["node1"]]
    found, expected = timeless(chain.root / "train"), timeless(undisturbed)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    # The one draw that depends on the division is dropout's.
    assert [line["loss/total"] for line in found] == pytest.approx([line["loss/total"] for line in expected], rel=5e-3)
    assert found[: STRUCK_AT - 5] == expected[: STRUCK_AT - 5]


def test_a_job_that_gets_nowhere_ends(chain_of: Callable[..., Chain]) -> None:
    stage: dict[str, Any] = {"program": "tests.slurm.stage_programs", "overrides": ["dies=true"]}
    chain = chain_of(stage=stage, resources={"max_fruitless_restarts": 1})
    chain.launch()
    chain.cluster.wait(chain.job("stage"), ("FAILED",), 120)
    assert len(chain.events("stage", "start")) == 2
    said = "\n".join(path.read_text() for path in chain.stage("stage").logs.glob("*_0_log.err"))
    assert "2 starts have ended at 0 files, expected progress after 1 restarts" in said


def test_cancelled_by_its_user_it_saves_and_goes_on_when_resubmitted(trains: Trains, undisturbed: Path) -> None:
    chain = trains()
    chain.launch()
    chain.reaches(STRUCK_AT)
    said = command("slurm.cancel", str(chain.root))
    assert "saves and ends" in said
    assert [event["why"] for event in chain.events("train", "end")] == ["cancelled"]
    newest = max(path.parent.name for path in (chain.root / "train/checkpoints").glob("*/COMPLETE"))
    assert int(newest.removeprefix("step_")) >= STRUCK_AT
    assert "cancelled" in chain.describe()
    command("slurm.resubmit", str(chain.root))
    chain.finished("train")
    assert_ends_alike(chain.root / "train", undisturbed)


@pytest.fixture(scope="session")
def undisturbed(trains_in: Callable[[Path], Trains], tmp_path_factory: pytest.TempPathFactory) -> Path:
    chain = trains_in(tmp_path_factory.mktemp("peace"))()
    chain.launch()
    chain.finished("train")
    assert len(chain.events("train", "start")) == 1
    return chain.root / "train"

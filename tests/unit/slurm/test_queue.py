"""What squeue and scancel are asked, and what their silence means."""

import pytest

from magvit_scale.config import Refusal
from slurm import queue
from tests.unit.slurm.fake_slurm import FakeSlurm


def test_jobs_are_read_by_id_and_what_slurm_has_forgotten_is_left_out(fake_slurm: FakeSlurm) -> None:
    assert queue.ask([]) == {}
    assert not fake_slurm.calls("squeue")
    assert queue.ask(["7"]) == {}
    fake_slurm.queue("7_1|RUNNING|None|0:10|1:00|2026-01-01T00:00:00|node[1-2]", "8|PENDING|Dependency|0:00|1:00|N/A|")
    jobs = queue.ask(["7_1", "8", "9"])
    assert jobs == {
        "7_1": queue.QueuedJob("7_1", "RUNNING", "None", "0:10", "1:00", "2026-01-01T00:00:00", "node[1-2]"),
        "8": queue.QueuedJob("8", "PENDING", "Dependency", "0:00", "1:00", "N/A", ""),
    }
    assert "--jobs=7_1,8,9" in fake_slurm.calls("squeue")[-1]


@pytest.mark.parametrize(("state", "lives"), [("PENDING", True), ("REQUEUE_HOLD", True), ("FAILED", False)])
def test_which_jobs_live(fake_slurm: FakeSlurm, state: str, lives: bool) -> None:
    fake_slurm.queue(f"7|{state}|None|0:10|1:00|N/A|node1")
    assert queue.ask(["7"])["7"].is_living == lives


def test_a_controller_that_does_not_answer_is_not_taken_for_an_empty_queue(fake_slurm: FakeSlurm) -> None:
    fake_slurm.go_down()
    with pytest.raises(Refusal, match="squeue: slurm_load_jobs error: Unable to contact slurm controller"):
        queue.ask(["7"])


def test_where_there_is_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Refusal, match="no command scancel here; go to a machine from which SLURM jobs are submitted"):
        queue.cancel(["7"])

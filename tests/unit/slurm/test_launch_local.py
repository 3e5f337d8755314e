"""The launcher with real processes of this machine."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.slurm.conftest import Chain

pytestmark = pytest.mark.distributed
Eventually = Callable[[Callable[[], bool]], None]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(chain: Chain, stage: str, rank: int) -> list[int]:
    return [int(pid) for pid in (chain.root / stage / f"pids.{rank}").read_text().split()]


def test_stages_run_in_order_with_their_processes_and_are_skipped_the_second_time(chain: Chain) -> None:
    chain.add("first", steps=10)
    chain.add("second", tasks=2)
    status, out, err = chain.run()
    assert (status, err) == (0, "")
    assert (
        out.index("== stage 1/2 first ==") < out.index("hello from rank 0 of 1") < out.index("== stage 2/2 second ==")
    )
    assert "hello from rank 0 of 2" in out
    assert f"report:      {chain.root}/report.html" in out
    assert f"tensorboard --logdir {chain.root}" in out
    assert [chain.runs("second", rank) for rank in range(3)] == [["2"], ["2"], []]
    status, out, _ = chain.run()
    assert status == 0
    assert out.count("finished before") == 2
    assert chain.runs("first") == ["1"]
    assert chain.runs("second") == ["2"]


def test_a_refusal_stops_the_chain_and_says_how_to_continue(chain: Chain) -> None:
    chain.add("first")
    chain.add("second", "refuse_rank=1", "wait_for=/nonexistent", tasks=2)
    chain.add("third")
    status, out, err = chain.run()
    first_line = err.splitlines()[0]
    assert status == 1
    assert first_line == (
        "stage second failed in rank 1: tests.unit.slurm.stage_programs: "
        "found 0 videos, expected 2; give another folder"
    )
    assert "_1_log.err:" in err
    assert err.splitlines()[-1] == f"to continue: python -m slurm.launch {chain.config}"
    assert "third" not in out
    assert not chain.runs("third")
    assert not any(is_alive(pid) for pid in pids(chain, "second", 0)), (
        "the waiting rank and its worker have to be ended"
    )


def test_the_same_processes_run_what_follows_when_all_of_them_have_ended_the_one_before(chain: Chain) -> None:
    names = ("first", "second")
    chain.add("first", "slow_rank=1", tasks=2)
    chain.add_then("second", "needs={root}/first/result.1")
    chain.add_then("third", alone=True)
    chain.add_then("fourth", "needs={root}/third/result.0")
    status, out, err = chain.run()
    assert (status, err, out.count("== stage")) == (0, "", 1)
    first, second = ([(chain.root / name / f"pid.{rank}").read_text() for rank in (0, 1)] for name in names)
    assert first == second
    assert chain.run()[1].count("finished before") == 1
    assert [chain.runs(name, rank) for name in names for rank in (0, 1)] == [["2"]] * 4
    assert [chain.runs("third", rank) for rank in (0, 1)] == [["1"], []]  # as one that has no others
    assert [chain.runs("fourth", rank) for rank in (0, 1)] == [["2"]] * 2


def test_a_refusal_of_what_follows_fails_the_stage_and_another_argument_is_another_stage(chain: Chain) -> None:
    chain.add("first")
    chain.add_then("second", "refuse_rank=0")
    status, _, err = chain.run()
    assert status == 1
    assert err.startswith("stage first failed in rank 0: tests.unit.slurm.stage_programs: found 0 videos")
    chain.stages["first"]["then"][0]["overrides"].pop()
    chain.write()
    status, _, err = chain.run()
    assert status == 1
    assert "stage first was started with other arguments" in err


def test_a_killed_rank_ends_the_other_and_both_their_workers(chain: Chain) -> None:
    chain.add("only", "kill_rank=1", "wait_for=/nonexistent", tasks=2)
    status, _, err = chain.run()
    assert status == 1
    assert err.startswith("stage only failed in rank 1: it ended without a message")
    assert not any(is_alive(pid) for pid in pids(chain, "only", 0))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_ended_takes_its_processes_along_and_continues(
    chain: Chain, eventually: Eventually, sent: signal.Signals
) -> None:
    go = chain.root / "go"
    chain.add("first")
    chain.add("second", f"wait_for={go}", tasks=2)
    launcher = chain.start()
    eventually(lambda: all((chain.root / "second" / f"pids.{rank}").exists() for rank in range(2)))
    processes = [*pids(chain, "second", 0), *pids(chain, "second", 1)]
    assert len(processes) == 4
    assert all(is_alive(pid) for pid in processes)
    launcher.send_signal(sent)
    _, err = launcher.communicate(timeout=30)
    eventually(lambda: not any(is_alive(pid) for pid in processes))
    if sent == signal.SIGINT:
        assert launcher.returncode == 130
        assert err.splitlines()[-1] == f"to continue: python -m slurm.launch {chain.config}"
    go.touch()
    status, out, _ = chain.run()
    assert status == 0
    assert out.count("finished before") == 1
    assert chain.runs("first") == ["1"]
    assert chain.runs("second") == ["2", "2"]


def test_ctrl_c_at_a_terminal_reaches_the_whole_foreground_group(chain: Chain, eventually: Eventually) -> None:
    chain.add("only", "wait_for=/nonexistent", tasks=2)
    launcher = chain.start(start_new_session=True)
    eventually(lambda: all((chain.root / "only" / f"pids.{rank}").exists() for rank in range(2)))
    os.killpg(launcher.pid, signal.SIGINT)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert "Traceback" not in err
    assert not any(is_alive(pid) for rank in range(2) for pid in pids(chain, "only", rank))


def test_a_second_launcher_on_the_same_folder_is_refused(chain: Chain, eventually: Eventually) -> None:
    go = chain.root / "go"
    chain.add("only", f"wait_for={go}")
    launcher = chain.start()
    eventually(lambda: (chain.root / "only" / "pids.0").exists())
    status, _, err = chain.run()
    go.touch()
    launcher.communicate(timeout=30)
    assert status == 1
    assert err == f"slurm.launch: {chain.root} is in use by another launcher; wait for it, or give another root=\n"
    assert launcher.returncode == 0
    assert chain.runs("only") == ["1"]

"""Which log is shown for which rank of which stage."""

import pytest

from magvit_scale.config import Refusal
from slurm import launch, logs
from tests.unit.slurm.conftest import Chain
from tests.unit.slurm.fake_slurm import FakeSlurm

pytestmark = pytest.mark.usefixtures("at_home")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def submitted(chain: Chain, fake_slurm: FakeSlurm) -> Chain:
    """Job 41 of `first` has written logs, the array 42 of `second` too, 43 of `third` has none."""
    chain.add("first")
    chain.add("second", array=2)
    chain.add("third")
    launch.main([str(chain.config), "cluster=slurm"])
    for stage, process in (("first", "41_0"), ("first", "41_1"), ("second", "42_0_0"), ("second", "42_1_0")):
        for kind in ("out", "err"):
            path = chain.root / "stages" / "logs" / stage / f"{process}_log.{kind}"
            path.write_text(f"{process} {kind}\n")
    return chain


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["first"], "41_0"),
        (["first", "--rank=1"], "41_1"),
        (["second.0"], "42_0_0"),
        (["second.1"], "42_1_0"),
        ([], "42_1_0"),
    ],
)
def test_both_logs_of_one_rank_are_shown(submitted: Chain, capsys: Capture, arguments: list[str], shown: str) -> None:
    capsys.readouterr()
    logs.main([str(submitted.root), *arguments])
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{shown} err", f"{shown} out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "--rank=2"], r"no logs of rank 2 in .*/stages/logs/first; see python -m slurm\.status"),
        (["third"], r"no logs of rank 0 in .*/stages/logs/third; see python -m slurm\.status"),
        (["second"], r"stage second was not started; expected one of first, second\.0, second\.1, third"),
    ],
)
def test_what_has_no_logs_is_refused(submitted: Chain, arguments: list[str], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        logs.main([str(submitted.root), *arguments])


def test_a_chain_without_a_started_stage_is_refused(submitted: Chain) -> None:
    for marker in (submitted.root / "stages").glob("*.started.json"):
        marker.unlink()
    with pytest.raises(Refusal, match="no stage was started yet"):
        logs.main([str(submitted.root), "first"])


def test_following_ends_with_the_stage(submitted: Chain, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    log = submitted.root / "stages" / "logs" / "first" / "41_0_log.out"

    def finish(_seconds: float) -> None:
        with log.open("a") as file:
            file.write("the last line\n")
        (submitted.root / "stages" / "first.json").touch()

    monkeypatch.setattr(logs.time, "sleep", finish)
    capsys.readouterr()
    logs.main([str(submitted.root), "first", "--follow"])
    assert sorted(capsys.readouterr().out.splitlines()) == ["41_0 err", "41_0 out", "the last line"]

"""Meetings of ranks: threads of this process stand for them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from magvit_scale.config import Refusal
from magvit_scale.training.meeting import Meeting
from slurm.job import free_port

PATIENCE_S = 20.0
SHORT_PATIENCE_S = 0.3


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    return ":".join(place.values())


def together(world_size: int, act: Callable[[Meeting], object]) -> list[object]:
    """What every rank gets from `act`, in order of ranks; the host leaves last."""
    have_acted = threading.Barrier(world_size)

    def be(rank: int) -> object:
        meeting = Meeting(rank, world_size, PATIENCE_S)
        found = act(meeting)
        have_acted.wait(PATIENCE_S)
        return found

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(be, range(world_size)))


def test_all_hear_what_rank_0_tells() -> None:
    assert together(3, lambda meeting: meeting.tell("word", f"of {meeting.rank}")) == ["of 0"] * 3


def test_rank_0_hears_all() -> None:
    found = together(3, lambda meeting: meeting.gather("word", f"of {meeting.rank}", range(3)))
    assert found == [{0: "of 0", 1: "of 1", 2: "of 2"}, {}, {}]


def test_one_alone_meets_itself() -> None:
    meeting = Meeting(0, 1, PATIENCE_S)
    assert (meeting.tell("word", "a"), meeting.gather("words", "b", [0])) == ("a", {0: "b"})


def test_who_does_not_come_is_not_waited_for_for_ever() -> None:
    meeting = Meeting(0, 3, SHORT_PATIENCE_S)
    assert meeting.gather("word", "of 0", range(3)) == {0: "of 0"}


def test_a_rank_without_its_host_says_where_it_looked(address: str) -> None:
    with pytest.raises(
        Refusal, match=f"^cannot reach rank 0 at {address} within 0.3 s: .*refused; see whether it runs"
    ):
        Meeting(1, 2, SHORT_PATIENCE_S)


def test_a_port_that_is_taken_is_named(address: str) -> None:
    first = Meeting(0, 2, SHORT_PATIENCE_S)
    with pytest.raises(Refusal, match=f"^cannot listen at MASTER_PORT={address.split(':')[1]}: .*in use.*another port"):
        Meeting(0, 2, SHORT_PATIENCE_S)
    del first


def test_a_silent_host_is_given_up() -> None:
    host = Meeting(0, 2, SHORT_PATIENCE_S)
    with pytest.raises(Refusal, match=r"^rank 0 has said nothing for 0\.6 s"):
        Meeting(1, 2, SHORT_PATIENCE_S).tell("word", "")
    del host


def test_a_host_that_has_left_is_told_from_a_silent_one() -> None:
    host = Meeting(0, 2, PATIENCE_S)
    guest = Meeting(1, 2, PATIENCE_S)
    del host
    with pytest.raises(Refusal, match=r"^rank 0 has ended; read its log$"):
        guest.tell("word", "")

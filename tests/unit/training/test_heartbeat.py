"""What follows from the words of all ranks, without processes or clocks."""

import pytest

from magvit_scale.training.heartbeat import DONE, Finding, Heartbeat, Peers


def word(rank: int, beat: int, moves: int = 0, **place: object) -> str:
    return Heartbeat(host=f"node{rank}", pid=100 + rank, beat=beat, moves=moves, **place).dump()  # type: ignore[arg-type]


def found(peers: Peers, now: float, hang_after_s: float = 100.0) -> Finding | None:
    return peers.finding(now, 10.0, hang_after_s)


def test_a_rank_is_dead_when_its_words_stay_the_same_for_longer_than_the_limit() -> None:
    peers = Peers(2, now=0.0)
    peers.hear([word(0, 1), word(1, 1, step=7, phase="data")], now=1.0)
    peers.hear([word(0, 2), word(1, 1, step=7, phase="data")], now=11.0)
    assert found(peers, 11.0) is None
    finding = found(peers, 11.5)
    assert finding == Finding(
        [1], "dead or stopped, no word for 10.5 s: rank 1 (host node1, pid 101, step 7, phase data)", 76
    )
    assert Finding.load(finding.dump()) == finding


def test_a_rank_that_never_spoke_is_named_too() -> None:
    peers = Peers(2, now=0.0)
    peers.hear([word(0, 1), b""], now=10.5)
    finding = found(peers, 10.5)
    assert finding is not None
    assert finding.line == "dead or stopped, no word for 10.5 s: rank 1 (never heard of)"


def test_the_ranks_of_a_lost_node_are_named_together_though_they_fell_silent_one_after_the_other() -> None:
    peers = Peers(4, now=0.0)
    peers.hear([word(rank, 1) for rank in range(4)], now=0.0)
    peers.hear([word(0, 2), word(1, 2), word(2, 1), word(3, 2)], now=1.0)
    peers.hear([word(0, 3), word(1, 3), word(2, 1), word(3, 2)], now=10.5)
    finding = found(peers, 10.5)
    assert finding is not None
    assert finding.ranks == [2, 3]


def test_who_is_done_is_not_missed() -> None:
    peers = Peers(2, now=0.0)
    peers.hear([word(0, 1), word(1, 1, left=DONE)], now=0.0)
    peers.hear([word(0, 2), word(1, 1, left=DONE)], now=50.0)
    assert found(peers, 50.0) is None
    assert peers.have_left(besides=[0])
    assert not peers.have_left(besides=[1])


def test_a_rank_that_left_by_an_error_is_quoted_and_nobody_is_to_start_again() -> None:
    peers = Peers(2, now=0.0)
    peers.hear([word(0, 1), word(1, 1, left="ValueError: no")], now=0.0)
    peers.hear([word(0, 2), word(1, 1, left="ValueError: no")], now=10.5)
    finding = found(peers, 10.5)
    assert finding is not None
    assert (finding.status, finding.line) == (
        1,
        "failed: rank 1 (host node1, pid 101, step 0, phase start): ValueError: no",
    )


@pytest.mark.parametrize(
    ("places", "hung"),
    [
        ([(5, "step"), (5, "data"), (5, "step")], [1]),
        ([(5, "sample"), (6, "step"), (6, "data")], [0]),
        ([(5, "data"), (5, "checkpoint"), (5, "data")], [0, 2]),
        ([(5, "step"), (5, "step"), (5, "step")], [0, 1, 2]),
    ],
)
def test_where_no_rank_moves_those_furthest_behind_hang(places: list[tuple[int, str]], hung: list[int]) -> None:
    peers = Peers(3, now=0.0)
    for beat, now in enumerate((0.0, 60.0, 100.5)):
        peers.hear([word(r, beat, step=step, phase=phase) for r, (step, phase) in enumerate(places)], now)
    assert peers.finding(100.0, 60.0, 100.0) is None
    finding = peers.finding(100.5, 60.0, 100.0)
    assert finding is not None
    assert (finding.ranks, finding.status, finding.is_hang) == (hung, 76, True)
    assert peers.finding(100.5, 60.0, 0.0) is None


def test_one_rank_that_moves_speaks_for_all() -> None:
    peers = Peers(2, now=0.0)
    peers.hear([word(0, 1, moves=1), word(1, 1)], now=0.0)
    peers.hear([word(0, 2, moves=2), word(1, 2)], now=90.0)
    peers.hear([word(0, 3, moves=2), word(1, 3)], now=110.0)
    assert peers.finding(110.0, 60.0, 100.0) is None


def test_a_long_list_of_ranks_is_cut() -> None:
    peers = Peers(20, now=0.0)
    peers.hear([word(0, 1), *[b""] * 19], now=10.5)
    finding = found(peers, 10.5)
    assert finding is not None
    assert len(finding.ranks) == 19
    assert finding.line.endswith("rank 8 (never heard of), and 11 more")

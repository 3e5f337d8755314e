"""Who reads what, on orders small enough to be written down."""

import numpy as np

from benchmarks.shard_reads import index_reads, is_each_once, moment_positions, readers, step_positions


def test_ranks_share_a_step_out() -> None:
    parts = [step_positions(step=5, rank=rank, world=3, per_rank=2).tolist() for rank in range(3)]
    assert parts == [[30, 31], [32, 33], [34, 35]]


def test_workers_of_a_moment_are_at_steps_of_their_own() -> None:
    # Steps 5 and 6 of six samples, two per rank: second samples of the ranks' parts.
    found = moment_positions(step=5, world=3, per_rank=2, workers=2, place=1)
    assert found.tolist() == [[31, 33, 35], [37, 39, 41]]


def test_readers_of_each_shard() -> None:
    assert readers(np.array([7, 3, 7, 7, 9])).tolist() == [1, 3, 1]


def test_an_index_is_read_again_when_two_others_came_after_it() -> None:
    assert index_reads([1, 1, 2, 1, 3, 2, 1], held=2) == 5  # 1, 2, 3, then 2 and 1, which had to go
    assert index_reads([1, 1, 2, 1, 3, 2, 1], held=3) == 3


def test_each_once_sees_what_is_missing_twice_or_strange() -> None:
    assert is_each_once(np.array([4, 2, 3]), 2, 5)
    assert not is_each_once(np.array([4, 2, 2]), 2, 5)
    assert not is_each_once(np.array([4, 2]), 2, 5)
    assert not is_each_once(np.array([5, 2, 3]), 2, 5)
    assert not is_each_once(np.array([1, 3, 4]), 2, 5)

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest

from magvit_scale.data import order as module
from magvit_scale.data.order import Order, Permutation, WindowedOrder

LARGE = [37464908, 16015123, 30453591, 93927832, 3346736]
WINDOWED = [2, 9, 1, 0, 8, 3, 6, 7, 4, 5, 2, 3, 1, 0, 4, 6, 8, 7, 9, 5]


def test_order_is_another_permutation_in_each_pass() -> None:
    order = Order(7, seed=1)
    passes = [[order.at(7 * number + place) for place in range(7)] for number in range(40)]
    assert all(sorted(found) == list(range(7)) for found in passes)
    assert len({tuple(found) for found in passes}) > 35
    assert [Order(7, seed=1).at(position) for position in (200, 3)] == [order.at(200), order.at(3)]
    assert [Order(50, seed=1).at(place) for place in range(50)] != [Order(50, seed=2).at(place) for place in range(50)]


def test_order_never_changes() -> None:
    # Runs that were started before an update must go on in the order they began with.
    assert [Order(10, seed=0).at(position) for position in range(12)] == [7, 5, 1, 9, 8, 6, 3, 4, 2, 0, 5, 1]
    assert [Order(10**8, seed=0).at(position) for position in (0, 1, 10**8 - 1, 10**8, 10**12)] == LARGE
    windowed = WindowedOrder([3, 1, 4, 2], 2, seed=0)
    assert [windowed.at(position) for position in range(20)] == WINDOWED


@pytest.mark.parametrize("size", [(1 << 16) + 1, 100_003, 1 << 17])
def test_a_large_permutation_is_one(size: int) -> None:
    permutation = Permutation(size, "test", 3)
    found = permutation.many(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))
    assert found[:50].tolist() == [permutation.at(place) for place in range(50)]
    # Shuffled well: neighbours do not stay neighbours, and no place is kept more often than by chance.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.02
    assert (found == np.arange(size)).sum() < 10
    assert (np.diff(found) == 1).sum() < 10


def test_a_seek_among_1e8_samples_takes_a_handful_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = []
    mix = module._mix
    monkeypatch.setattr(module, "_mix", lambda word, key: mixed.append(key) or mix(word, key))
    orders: list[Any] = [Order(10**8, seed=1), WindowedOrder([1000] * 100_000, 8, seed=1)]
    for order in orders:
        mixed.clear()
        tracemalloc.start()
        assert 0 <= order.at(3 * 10**8 + 12345678) < 10**8
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(mixed) <= 20 * module.NUM_ROUNDS
        # The permuted shards of one pass, and nothing that grows with the samples.
        assert peak < 8_000_000


def test_many_positions_at_once_across_passes() -> None:
    for order in (Order(11, seed=4), Order(70_000, seed=4), WindowedOrder([5, 6, 7], 2, seed=4)):
        positions = np.array([0, 3, order.num_samples - 1, order.num_samples, 2 * order.num_samples + 5])
        assert order.many(positions).tolist() == [order.at(int(position)) for position in positions]


def test_windows_hold_whole_shards_and_every_sample_once() -> None:
    counts = [3, 1, 4, 0, 2, 5, 3]
    order = WindowedOrder(counts, 2, seed=5)
    shard_of = np.repeat(np.arange(7), counts)
    for number in range(30):
        found = [order.at(18 * number + place) for place in range(18)]
        assert sorted(found) == list(range(18))
        ahead = order.shards_ahead(18 * number)
        place = 0
        for num_shards in (2, 2, 2, 1):
            window = list(itertools.islice(ahead, num_shards))
            size = sum(counts[shard] for shard in window)
            assert {int(shard_of[sample]) for sample in found[place : place + size]} <= set(window)
            place += size
        assert place == 18
    passes = {tuple(order.at(18 * number + place) for place in range(18)) for number in range(30)}
    assert len(passes) == 30
    # Within a window the shards are mixed, not read one after the other.
    mixed = WindowedOrder([50, 50], 2, seed=0)
    assert 10 < sum(mixed.at(place) < 50 for place in range(50)) < 40


def test_an_order_needs_samples() -> None:
    with pytest.raises(ValueError, match="num_samples=0: expected at least 1"):
        Order(0, seed=0)
    with pytest.raises(ValueError, match="num_samples=0: expected at least 1"):
        WindowedOrder([0, 0], 1, seed=0)
    with pytest.raises(ValueError, match="window=0: expected at least 1"):
        WindowedOrder([1], 0, seed=0)

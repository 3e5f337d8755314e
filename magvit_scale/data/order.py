"""The seekable order of training: which sample stands at a position, as a function of (seed, position) alone. No torch.

Positions count over all passes, so one integer, the samples consumed, is the whole state of a run's data. Nothing is
replayed: the position 10^8 costs what the position 0 costs.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

SORTED_UP_TO = 1 << 16
"""Permutations of so many are sorted once; larger ones are computed place by place."""
NUM_ROUNDS = 8
_WORD = (1 << 64) - 1


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A random generator that is a function of its key alone: (purpose, seed, position, ...)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Permutation:
    """A random permutation of [0, size), a function of its key; any place costs the same, memory is bounded."""

    def __init__(self, size: int, *key: int | str) -> None:
        self.size = size
        # Raw words: NumPy promises those bits for ever, but not the bits of Generator.permutation.
        words = keyed_generator(*key).bit_generator
        self._table = np.argsort(words.random_raw(size), kind="stable") if size <= SORTED_UP_TO else None
        self._keys: list[int] = [] if self._table is not None else words.random_raw(NUM_ROUNDS).tolist()

    def at(self, place: int) -> int:
        """What stands at `place` in [0, size)."""
        if self._table is not None:
            return int(self._table[place])
        # The network permutes up to the next power of two; what falls outside is sent through it again.
        place = self._scramble(place)
        while place >= self.size:
            place = self._scramble(place)
        return place

    def many(self, places: Numbers) -> Numbers:
        """`at` for an array of places."""
        if self._table is not None:
            return self._table[places]
        found = self._scramble(places.astype(np.uint64))
        while (outside := found >= self.size).any():
            found[outside] = self._scramble(found[outside])
        return found.astype(np.int64)

    def _scramble(self, place: Any) -> Any:
        """A Feistel network, for an int or uint64 array: each round mixes one half of the bits into the other, which
        can be undone, so no two places meet.
        """
        bits = (self.size - 1).bit_length()
        low_bits = bits // 2
        low, high = place & ((1 << low_bits) - 1), place >> low_bits
        for number, key in enumerate(self._keys):
            if number % 2:
                low = low ^ (_mix(high, key) & ((1 << low_bits) - 1))
            else:
                high = high ^ (_mix(low, key) & ((1 << bits - low_bits) - 1))
        return high << low_bits | low


class Order:
    """An endless order of samples: pass after pass, each a permutation that is a function of (seed, pass)."""

    def __init__(self, num_samples: int, seed: int) -> None:
        """Orders `num_samples` samples.

        Raises:
            ValueError: no samples.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: expected at least 1")
        self.num_samples, self.seed = num_samples, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)

    def at(self, position: int) -> int:
        """The sample in [0, num_samples) at a position from 0, counted over all passes."""
        pass_number, place = divmod(position, self.num_samples)
        return self._permutation(pass_number).at(place)

    def many(self, positions: Numbers) -> Numbers:
        """`at` for an array of positions."""
        found = np.empty_like(positions)
        passes, places = np.divmod(positions, self.num_samples)
        for pass_number in np.unique(passes):
            chosen = passes == pass_number
            found[chosen] = self._permutation(int(pass_number)).many(places[chosen])
        return found

    def _permute(self, pass_number: int) -> Any:
        return Permutation(self.num_samples, "order", self.seed, pass_number)


class WindowedOrder(Order):
    """An order that stays for a while among few shards: in each pass the shards are permuted, and every `window`
    consecutive ones are shuffled jointly, so that only those need to be at hand.
    """

    def __init__(self, counts: Sequence[int], window: int, seed: int) -> None:
        """Orders the samples of shards of `counts` samples, numbered through.

        Raises:
            ValueError: no samples, or a window below 1.
        """
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1")
        super().__init__(sum(counts), seed)
        self.counts, self.window = np.asarray(counts, np.int64), window
        self._first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def shards_ahead(self, position: int) -> Iterator[int]:
        """The shards in the order in which they are needed: the window at `position`, then endlessly on."""
        pass_number, place = divmod(position, self.num_samples)
        start = self._permutation(pass_number).window_at(place)[0] * self.window
        while True:
            yield from self._permutation(pass_number).shards[start:].tolist()
            pass_number, start = pass_number + 1, 0

    def _permute(self, pass_number: int) -> Any:
        return _WindowedPass(self, pass_number)


class _WindowedPass:
    """One pass of a WindowedOrder."""

    def __init__(self, order: WindowedOrder, pass_number: int) -> None:
        self.first = order._first
        permutation = Permutation(len(order.counts), "shards", order.seed, pass_number)
        self.shards = permutation.many(np.arange(len(order.counts)))
        self.starts = np.concatenate([[0], np.cumsum(order.counts[self.shards])])
        self.window_starts = np.append(self.starts[: -1 : order.window], order.num_samples)
        key = ("window", order.seed, pass_number)
        self.permutation = functools.lru_cache(maxsize=2)(lambda size, number: Permutation(size, *key, number))

    def window_at(self, place: int) -> tuple[int, int, int]:
        """The window in which a place of the pass lies: its number, first place and size."""
        number = int(np.searchsorted(self.window_starts, place, side="right")) - 1
        start, end = self.window_starts[number : number + 2].tolist()
        return number, start, end - start

    def at(self, place: int) -> int:
        number, start, size = self.window_at(place)
        shuffled = start + self.permutation(size, number).at(place - start)
        shard = int(np.searchsorted(self.starts, shuffled, side="right")) - 1
        return int(self.first[self.shards[shard]] + shuffled - self.starts[shard])

    def many(self, places: Numbers) -> Numbers:
        return np.array([self.at(int(place)) for place in places], np.int64)


def _mix(word: Any, key: int) -> Any:
    """64 bits of which each depends on all of `word` and `key` (the finaliser of MurmurHash3)."""
    word = (word ^ key) * 0xFF51AFD7ED558CCD & _WORD
    word = (word ^ (word >> 33)) * 0xC4CEB9FE1A85EC53 & _WORD
    return word ^ (word >> 33)

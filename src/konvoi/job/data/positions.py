"""The job's one sequence of samples: position -> (epoch, index), the same whatever the number of workers.

Each epoch visits every index once, in an order that is computed, never stored: a Feistel network permutes the smallest
power of two that holds the length, and positions that fall outside walk on along their cycle until they are inside
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, section 4). So any position is read in
constant memory, and resuming in the middle of an epoch costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
_Words: TypeAlias = NDArray[np.uint64]

NUM_ROUNDS = 7  # Luby and Rackoff prove 4 with perfect round functions; ours are cheap, and halves of one bit are weak
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: splitmix64's step between two states
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Order:
    """Samples 0..length-1, shuffled anew in every epoch.

    >>> order = Order(seed=0, length=5)
    >>> [order.index(position)[0] for position in (0, 4, 5, 12)]
    [0, 0, 1, 2]
    >>> sorted(order.indices(5, 10)[1].tolist())
    [0, 1, 2, 3, 4]
    """

    seed: int
    length: int

    def index(self, position: int) -> tuple[int, int]:
        """(epoch, index) of one position."""
        epochs, indices = self.indices(position, position + 1)
        return int(epochs[0]), int(indices[0])

    def indices(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """(epochs, indices) of the positions start..stop-1; they may span several epochs."""
        epochs, offsets = np.divmod(np.arange(start, stop, dtype=np.int64), self.length)
        indices = np.empty_like(offsets)
        for epoch in range(start // self.length, -(-stop // self.length)):
            here = epochs == epoch
            indices[here] = permute(offsets[here], self.length, _round_keys(self.seed, epoch))
        return epochs, indices


def part(start: int, stop: int, rank: int, count: int) -> tuple[int, int]:
    """The contiguous part of start..stop-1 that is `rank`'s of `count`; parts differ by at most one.

    >>> [part(0, 10, rank, 4) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    length = stop - start
    return start + length * rank // count, start + length * (rank + 1) // count


def permute(offsets: Ints, length: int, keys: tuple[int, ...]) -> Ints:
    """The images of `offsets` under a keyed permutation of 0..length-1."""
    values = offsets.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):  # the domain is less than twice the length (4 at least): half walk on, at worst, each time
        values[outside] = _feistel(values[outside], max(2, (length - 1).bit_length()), keys)
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)


def _feistel(values: _Words, num_bits: int, keys: tuple[int, ...]) -> _Words:
    """Permute 0..2**num_bits-1: each half in turn is XORed with a keyed function of the other."""
    low_bits = num_bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (num_bits - low_bits)) - 1)
    low, high = values & low_mask, values >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        if number % 2:
            high ^= _scramble(low, key) & high_mask
        else:
            low ^= _scramble(high, key) & low_mask
    return (high << np.uint64(low_bits)) | low


def _scramble(half: _Words, key: int) -> _Words:
    """A keyed hash of 64 bits: two of splitmix64's multiplications (Steele, Lea and Flood, OOPSLA 2014, figure 16)."""
    word = (half ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(29)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(32)
    return word


def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    base = mix(mix(seed & MASK) ^ epoch)
    return tuple(mix(base + GOLDEN * number) for number in range(1, NUM_ROUNDS + 1))


def mix(word: int) -> int:
    """splitmix64's finaliser for one Python integer: every bit of the input moves half of the output's."""
    word &= MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)

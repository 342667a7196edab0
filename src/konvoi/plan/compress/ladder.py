"""The codecs from one bit a value to all of them, as rungs: for plans that choose while they train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan.compress.int8 import int8
from konvoi.plan.compress.low_bit import low_bit
from konvoi.plan.compress.none import none

if TYPE_CHECKING:
    from torch import Tensor

RUNGS = (low_bit(1), low_bit(2), low_bit(4), int8(), none())


@dataclass(frozen=True)
class Ladder:
    """What is encoded says in its first byte which rung it is of, so that any of them is read."""

    rung: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rung < len(RUNGS):
            raise PlanError(f"a ladder has {len(RUNGS)} rungs", found=repr(self.rung), expected="0 for one bit")

    def at(self, rung: int) -> Ladder:
        return replace(self, rung=rung)

    def sizes(self) -> tuple[float, ...]:
        """Bytes of a float32, by rung."""
        return tuple(one.num_bytes(4096) / 4096 for one in RUNGS)

    def encode(self, values: Tensor) -> bytes:
        return bytes([self.rung]) + RUNGS[self.rung].encode(values)

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        if not data or data[0] >= len(RUNGS):
            raise MessageRefused("this is not an encoded part", found=f"rung {data[0]}" if data else "nothing")
        return RUNGS[data[0]].decode(data[1:], like)

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        return 1 + RUNGS[self.rung].num_bytes(length, itemsize)


def ladder() -> Ladder:
    """One, two and four bits a value, eight, and all: a convoy with `max_comm_fraction` begins with the first, and
    takes what its links carry.

    >>> [ladder().at(rung).num_bytes(4096) for rung in range(5)]
    [545, 1057, 2177, 4161, 16385]
    """
    return Ladder()

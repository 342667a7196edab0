"""Positions of the data's order: who is to read which, so that none is counted twice and none is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konvoi.plan.sync.messages import Decision, Range, Update

Leases = tuple[tuple[str, tuple[Range, ...]], ...]  # by member


@dataclass(frozen=True)
class Reading:
    """How far a convoy has come in its data, as a checkpoint says it."""

    leases: Leases  # what each member still has to read
    cursor: int  # the first position that was never leased
    returned: tuple[Range, ...] = ()

    @classmethod
    def of(cls, last: Decision, member: str, samples: int) -> Reading:
        """Where `member` has read that many samples, and they are in its weights."""
        left = dict(last.leases)
        left[member] = without_first(left.get(member, ()), samples)
        return cls(tuple(left.items()), last.cursor, last.returned)


def size(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def take(ranges: Sequence[Range], number: int) -> tuple[Range, ...]:
    """The first so many positions, all where there are fewer.

    >>> take(((0, 3), (7, 9)), 4)
    ((0, 3), (7, 8))
    """
    found: list[Range] = []
    for start, stop in ranges:
        stop = min(stop, start + number - size(found))
        if stop > start:
            found.append((start, stop))
    return tuple(found)


def without_first(ranges: Sequence[Range], number: int) -> tuple[Range, ...]:
    """
    >>> without_first(((0, 3), (7, 9)), 4)
    ((8, 9),)
    """
    found: list[Range] = []
    for start, stop in ranges:
        skipped = min(number, stop - start)
        number -= skipped
        if start + skipped < stop:
            found.append((start + skipped, stop))
    return tuple(found)


def next_leases(
    last: Decision, members: Sequence[str], counted: Mapping[str, Update], lease: int, ahead: int = 0
) -> tuple[Leases, int, tuple[Range, ...]]:
    """Each member's, the cursor, and what was returned and not leased again.

    What was counted is done with. Everybody has the work of two rounds ahead, so that nobody waits for a decision in
    order to read on; of `lease`, or of its last update where that was more; and a round's and `ahead`, which may have
    been read since the update, at least. Whoever is gone gives its own back.
    """
    left = {name: without_first(held, counted[name].samples if name in counted else 0) for name, held in last.leases}
    returned = [*last.returned, *(one for name, held in left.items() if name not in members for one in held)]
    leases: list[tuple[str, tuple[Range, ...]]] = []
    cursor = last.cursor
    for member in members:
        held = list(left.get(member, ()))
        wanted = max(2 * max(lease, counted[member].samples if member in counted else 0), lease + ahead)
        while size(held) < wanted:
            if returned:
                held.append(returned.pop(0))
            else:
                held.append((cursor, cursor + wanted - size(held)))
                cursor = held[-1][1]
        leases.append((member, tuple(held)))
    return tuple(leases), cursor, tuple(returned)


def begin_anew(was: Reading, members: tuple[str, ...], voters: tuple[str, ...], lease: int, steps: int) -> Decision:
    """What a convoy begins with that goes on where another has ended, maybe with other members.

    >>> was = Reading((("a", ((8, 12),)), ("b", ((12, 16),))), 16)
    >>> begin_anew(was, ("a",), ("a",), 4, 2).leases
    (('a', ((8, 12), (12, 16))),)
    """
    last = Decision(-1, "", (), (), (), (), (), was.leases, was.cursor, was.returned)
    given, cursor, returned = next_leases(last, members, {}, lease)
    return Decision(0, "", (), (), (), members, voters, given, cursor, returned, steps=steps)

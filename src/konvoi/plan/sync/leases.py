"""Positions of the data's order: who is to read which, so that none is counted twice and none is lost."""

from __future__ import annotations

from collections.abc import Sequence

from konvoi.plan.sync.messages import Decision, Range, Update


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
    last: Decision, members: Sequence[str], counted: dict[str, Update], lease: int
) -> tuple[tuple[tuple[str, tuple[Range, ...]], ...], int, tuple[Range, ...]]:
    """Each member's, the cursor, and what was returned and not leased again.

    What was counted is done with. Everybody has the work of two rounds ahead, so that nobody waits for a decision in
    order to read on; of `lease`, or of its last update where that was more. Whoever is gone gives its own back.
    """
    left = {name: without_first(held, counted[name].samples if name in counted else 0) for name, held in last.leases}
    returned = [*last.returned, *(one for name, held in left.items() if name not in members for one in held)]
    leases: list[tuple[str, tuple[Range, ...]]] = []
    cursor = last.cursor
    for member in members:
        held = list(left.get(member, ()))
        wanted = 2 * max(lease, counted[member].samples if member in counted else 0)
        while size(held) < wanted:
            if returned:
                held.append(returned.pop(0))
            else:
                held.append((cursor, cursor + wanted - size(held)))
                cursor = held[-1][1]
        leases.append((member, tuple(held)))
    return tuple(leases), cursor, tuple(returned)

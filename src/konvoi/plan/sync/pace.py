"""How many steps the next round has, and how many bits a value, where a plan leaves that to what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from konvoi.plan.sync.messages import Decision, Update
from konvoi.plan.sync.state import Rules

LONGEST = 1024  # steps
ROOM = 0.7  # of what an exchange may take, for the next rung to be tried


def following(rules: Rules, last: Decision, updates: Sequence[Update]) -> tuple[int, int]:
    """Steps and rung of the round behind the one in which these were added up: an exchange is to take
    `max_comm_fraction` of it, at most. What an exchange takes is the least that a member has seen: the others have
    waited for the slowest to take its steps, too.

    Few bits and often is better than many bits and seldom (docs/LOG.md): bits are added where islands agree at every
    step already, and are taken away first. A round is at most twice as long as the last, and at least half as long.

    >>> rules, last = Rules(every=8, max_comm_fraction=0.1, rungs=(1, 2)), Decision.first(("a",), ("a",), 8)
    >>> [following(rules, last, [Update("a", 0, 8, 8.0, (), cost=cost)]) for cost in (0.01, 1.2, 9.0)]
    [(4, 0), (12, 0), (16, 0)]
    """
    every, rung = last.every or rules.every, last.rung
    cost = min((one.cost for one in updates if one.cost > 0), default=0.0)
    if not rules.max_comm_fraction or not cost:
        return last.every, rung
    wanted = math.ceil(min(cost / rules.max_comm_fraction, LONGEST))
    if wanted > every and rung:
        return every, rung - 1
    if every == wanted == 1 and rung + 1 < len(rules.rungs):
        then = cost * rules.rungs[rung + 1] / rules.rungs[rung]
        rung += then <= ROOM * rules.max_comm_fraction
    return max(wanted, every // 2) if wanted < every else min(wanted, 2 * every), rung

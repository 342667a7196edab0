"""Who takes part in a round of a simulated federation, and whose work arrives in time: all of it follows from seeds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from konvoi.fleet.simulated import Simulated
from konvoi.job.data.positions import Ints, mix
from konvoi.plan.convoy import Convoy


@dataclass(frozen=True)
class Cohort:
    """Of one round. Whose work does not arrive is not computed either."""

    round: int  # 1 is the first
    asked: tuple[int, ...]
    counted: tuple[int, ...]  # those of them whose updates arrived in time; () where too few did
    seconds: float  # of the simulated clock, from the round's beginning to its end


def of_round(round: int, plan: Convoy, fleet: Simulated, num_steps: Sequence[int]) -> Cohort:
    """`num_steps`: each client's, in a round."""
    draw = generator(fleet.seed, "cohort", round)
    there = np.arange(len(num_steps))
    if fleet.available < 1:
        there = there[draw.random(len(there)) < fleet.available]
    size = min(plan.cohort or len(there), len(there))
    asked = np.sort(draw.choice(there, size, replace=False)) if size < len(there) else there
    needed = max(1, math.ceil(plan.quorum * len(asked)))
    heard = asked[draw.random(len(asked)) >= fleet.dropout]
    if len(heard) < needed:
        return Cohort(round, _plain(asked), (), plan.patience_s)
    took = durations(fleet, num_steps)[heard]
    end = max(np.sort(took)[needed - 1], took.min() + plan.deadline_s)
    in_time = took <= end
    return Cohort(round, _plain(asked), _plain(heard[in_time]), float(took[in_time].max()))


def durations(fleet: Simulated, num_steps: Sequence[int]) -> NDArray[np.float64]:
    """Seconds that each client takes for a round."""
    pace = np.exp(fleet.spread * generator(fleet.seed, "pace").standard_normal(len(num_steps)))
    return np.asarray(num_steps) * fleet.step_s * pace


@dataclass(frozen=True)
class Arrival:
    """An update of an asynchronous federation: whose, and of which round the weights were that it began with."""

    client: int
    since: int


def arrivals(plan: Convoy, fleet: Simulated, num_steps: Sequence[int]) -> Iterator[tuple[list[Arrival], float, int]]:
    """Without end: the updates that make each round where nobody waits, the clock at its end, and the oldest round
    whose weights are still in somebody's hands, theirs included.

    `plan.cohort` clients train at any time. Who is done, or lost, is replaced at once by somebody who does not.
    """
    draw, took = generator(fleet.seed, "arrivals"), durations(fleet, num_steps)
    number = min(plan.cohort or len(num_steps), len(num_steps))
    idle = list(draw.permutation(len(num_steps)))
    busy: list[tuple[float, int, int]] = []  # done at, client, since
    now, round, here = 0.0, 0, list[Arrival]()

    def begin() -> None:
        client = int(idle.pop(int(draw.integers(len(idle)))))
        # A little apart, so that no order hangs on equal numbers.
        heapq.heappush(busy, (now + took[client] * (1 + 1e-3 * draw.random()), client, round))

    for _ in range(number):
        begin()
    while True:
        now, client, since = heapq.heappop(busy)
        if draw.random() >= fleet.dropout:
            here.append(Arrival(client, since))
        idle.append(client)
        if len(here) == plan.at_once:
            yield here, now, min([one.since for one in here] + [since for _, _, since in busy])
            round, here = round + 1, []
        begin()


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    key = mix(mix(seed) + sum(ord(letter) << (8 * place) for place, letter in enumerate(purpose[:6])))
    return np.random.Generator(np.random.Philox(mix(key + number)))


def order(seed: int, client: int, round: int, indices: Ints, sizes: Sequence[int]) -> list[Ints]:
    """The samples of each of a client's steps in a round: passes over its own, each in an order of its own.

    >>> [one.tolist() for one in order(0, 3, 1, np.arange(2), (2, 1))]
    [[0, 1], [1]]
    """
    draw = np.random.Generator(np.random.Philox(key=mix(mix(mix(seed) + client) + round)))
    total = sum(sizes)
    passes = [draw.permutation(indices) for _ in range(-(-total // len(indices)))]
    return np.split(np.concatenate(passes)[:total], np.cumsum(sizes)[:-1])


def _plain(clients: Ints) -> tuple[int, ...]:
    return tuple(clients.tolist())

"""Which clients are trained together, and which one by one: whichever is faster here, found by a step of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konvoi.errors import KonvoiError
from konvoi.job.data.positions import Ints
from konvoi.plan.local import Local
from konvoi.population.memory import Peak
from konvoi.population.together import Together
from konvoi.population.work import Way, Work
from konvoi.units import format_bytes

MOST, FEW = 32, 8  # clients at once: few sizes, as each is a computation to be traced
TRIES = 3

Sizes = tuple[int, ...]  # samples of each of a client's steps


def stack_sizes(cohort: int, num_workers: int) -> tuple[int, ...]:
    """How many clients of a cohort are trained at once, so that each worker's share is some whole stacks of one size;
    and fewer, for what is left where somebody is lost or done.

    >>> stack_sizes(100, num_workers=2), stack_sizes(10_000, num_workers=2), stack_sizes(10, num_workers=2)
    ((25, 8), (32, 8), (5,))
    """
    share = math.ceil(cohort / num_workers)
    size = math.ceil(share / math.ceil(share / MOST))
    return (size, FEW) if size > FEW else (size,)


@dataclass(frozen=True)
class Costs:
    """Seconds of a step: of a client alone, and of stacks by their sizes. What is impossible costs without end."""

    alone: float
    stacks: Mapping[int, float] = field(default_factory=dict)

    def of(self, num_steps: Sequence[int], size: int) -> float:
        """Of a piece, whose clients have these numbers of steps, descending; size 1 is alone.

        >>> Costs(alone=1.0, stacks={8: 4.0, 2: 2.0}).of([5, 5, 1, 1, 1, 1, 1, 1], 8)  # 1 step of 8, 4 of 2
        12.0
        """
        if size == 1:
            return self.alone * sum(num_steps)
        total, last = 0.0, 0
        for here, smaller in zip(sizes := self.ladder(size), (*sizes[1:], 0), strict=True):
            until = num_steps[smaller] if smaller else num_steps[0]
            total, last = total + (until - last) * self.stacks[here], until
        return total

    def ladder(self, size: int) -> list[int]:
        """The sizes that a stack goes through while its clients come to their ends."""
        return sorted((one for one in self.stacks if one <= size), reverse=True)

    def divide(self, num_steps: Sequence[int]) -> list[tuple[int, int, float]]:
        """Pieces (start, stop, cost) of clients with these numbers of steps, descending, that cost least together.

        >>> Costs(alone=1.0, stacks={4: 2.0}).divide([9, 2, 2, 2, 2])
        [(0, 1, 9.0), (1, 5, 4.0)]
        """
        best = [(0.0, 0)] + [(math.inf, 0)] * len(num_steps)  # cost of the first so many, and where their last begins
        for start in range(len(num_steps)):
            for size in (1, *self.stacks):
                if start + size <= len(num_steps):
                    cost = best[start][0] + self.of(num_steps[start : start + size], size)
                    if cost < best[start + size][0]:
                        best[start + size] = (cost, start)
        pieces, stop = [], len(num_steps)
        while stop:
            cost, start = best[stop]
            pieces.append((start, stop, cost - best[start][0]))
            stop = start
        return pieces[::-1]


@dataclass(frozen=True)
class Trainer:
    """Both ways, and what they cost."""

    one_by_one: Way
    together: Way | None
    costs: Costs
    can_fill_up: bool = True  # clients of a stack may have steps of unequal numbers of samples

    def way(self, count: int) -> Way:
        return self.together if self.together is not None and count > 1 else self.one_by_one

    def pieces(
        self, clients: Sequence[int], sizes: Mapping[int, Sizes] | Sequence[Sizes], num_workers: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Clients that are trained at once, and by which worker. Dealt out first, the longest to whoever has least to
        do, so that all workers end together; then each worker's are divided as costs least."""
        shares: list[list[int]] = [[] for _ in range(num_workers)]
        busy = [0] * num_workers
        for client in sorted(clients, key=lambda client: -len(sizes[client])):
            worker = busy.index(min(busy))
            busy[worker] += len(sizes[client])
            shares[worker].append(client)
        for worker, share in enumerate(shares):
            alike: dict[Any, list[int]] = {}
            for client in share:
                alike.setdefault(None if self.can_fill_up else sizes[client], []).append(client)
            for same in alike.values():
                for start, stop, _ in self.costs.divide([len(sizes[client]) for client in same]):
                    yield worker, same[start:stop]

    def why(self) -> str:
        """For a person."""
        costs = self.costs
        if not costs.stacks:
            return "clients are trained one by one"
        size = min(costs.stacks, key=lambda size: costs.stacks[size] / size)
        times = costs.alone * size / costs.stacks[size]
        told = f"{size} clients are trained together" + (f" {times:.1f} times as fast as one by one" * (times < 1e9))
        return told if self.can_fill_up else f"{told}, where their batches are of one size"


def measure(
    one_by_one: Way,
    together: Callable[[], Together],
    parameters: Sequence[Tensor],
    batch: Ints,
    sizes: Sequence[int],
    memory: int,
    local: Local,
) -> tuple[Trainer, str]:
    """`together()` makes that way, or says why not; `batch`: of one step of a client; `memory`: bytes that a stack may
    take. Returns a word for a person, too."""
    alone = _seconds(one_by_one, parameters, batch, 1)
    stacks: dict[int, float] = {}
    try:
        way = together()
        each = _bytes(way, parameters, batch, local)
        most = max(1, memory // each)
        way.sizes = sorted({min(size, most) for size in sizes} - {1})
        for size in reversed(way.sizes):
            stacks[size] = _seconds(way, parameters, batch, size)
        if stacks:
            way.check_filling_up(batch)
    except Exception as error:  # of the user's model: whatever vmap runs into
        told = error.message if isinstance(error, KonvoiError) else str(error).strip().partition("\n")[0]
        reason = told or type(error).__name__
        return Trainer(one_by_one, None, Costs(alone)), f"clients are trained one by one: {reason}"
    trainer = Trainer(one_by_one, way, Costs(alone, stacks), way.can_fill_up)
    if not stacks and max(sizes) > 1:
        return (
            trainer,
            f"{trainer.why()}: each takes {format_bytes(each)} in a stack, of {format_bytes(memory)} there are",
        )
    return trainer, trainer.why()


def _bytes(way: Together, parameters: Sequence[Tensor], batch: Ints, local: Local) -> int:
    """What each client of a stack takes at most: found with two that end apart, without tracing."""
    with Peak() as peak, way.gradients.untraced():
        weights = _copies(parameters, 2)
        corrections = [torch.zeros_like(one) for one in weights] if local.controls else None
        way.train(Work(1, weights, [[batch] * 2, [batch]], local.proximal, corrections))
    each: int = max(1, peak.bytes // 2)
    return each


def _seconds(way: Way, parameters: Sequence[Tensor], batch: Ints, count: int) -> float:
    """Of a step, at best of a few; the first traces."""
    best = math.inf
    for _ in range(1 + TRIES):
        weights = _copies(parameters, count)
        begin = time.perf_counter()
        way.train(Work(1, weights, [[batch]] * count))
        if parameters[0].device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def _copies(parameters: Sequence[Tensor], count: int) -> list[Tensor]:
    return [p.detach().expand(count, *p.shape).clone() for p in parameters]

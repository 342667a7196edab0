"""An island's place in a convoy, as each of its workers sees it: the first one agrees for all."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from konvoi.errors import PlanError
from konvoi.gossiping import Gossiper
from konvoi.island import LiveIsland
from konvoi.job.data.loader import Leased
from konvoi.job.job import Prepared
from konvoi.learner import Follower, Learner
from konvoi.meeting import Meeting
from konvoi.membership import Member
from konvoi.mirror import Mirror
from konvoi.observe.events import Emit
from konvoi.plan.split.parts import Parts
from konvoi.plan.sync.messages import Decision
from konvoi.presence import Order
from konvoi.task import Membership
from konvoi.values import MicroBatch

T = TypeVar("T")


class Team:
    """Use with `with`. Every worker calls the same methods; between two steps the first one says what all do next."""

    def __init__(
        self,
        given: Membership,
        island: LiveIsland,
        parts: Parts,
        emit: Emit,
        meeting: Meeting | None = None,
        learner: Learner | None = None,
        start: int = 0,
    ) -> None:
        """`learner`: where gradients are agreed on, which islands of one worker can do. `start`: steps that were taken
        before."""
        self.given, self.island = given, island
        self._follower = learner if isinstance(learner, Follower) else None
        self.mirror = Mirror(island, parts)
        if self._follower is not None and not self.mirror.is_direct:
            raise PlanError("gradients are agreed on in float32 or float64, by islands of one worker on a CPU")
        self.member: Member | Gossiper | None = None
        if island.place.worker == 0 and given.plan.partners == "pairs":
            self.member = Gossiper(given, self.mirror.tensors, island.place, emit, meeting, start)
        elif island.place.worker == 0:
            beside = self._follower.state if self._follower else ()
            self.member = Member(given, self.mirror.tensors, island.place, emit, meeting, beside)
            self.member.live.step_with = self._step_with if self._follower else None
        self._least = 0

    @property
    def comes_late(self) -> bool:
        """Whether the others have begun before: its weights are theirs soon."""
        return self.island.place.attempt > 0 or self.given.first.round < 0

    def batches(self, prepared: Prepared) -> Iterator[list[MicroBatch]]:
        """What is leased to this island, this worker's share of a step at a time."""
        plan = self.island.plan
        samples = Leased(
            prepared.splits.train,
            seed=prepared.job.seed,
            worker=self.island.part,
            num_workers=plan.num_parts,
            accumulate=plan.num_micro_batches(self.given.batch),
            collate=prepared.job.collate,
        )
        while (order := self.ready()).ranges:
            yield samples.read(order.ranges)

    def ready(self) -> Order:
        """Agree, and wait where the others have to agree first; returns what the next step reads, or that none is to be
        taken."""
        while True:
            order = self._told(self.member.next() if self.member else None)
            self._follow(order)
            if order.is_over or order.ranges:
                return order

    def reading(self) -> dict[str, Any] | None:
        """How far the convoy has come in its data, on the first worker; None where nobody leases."""
        return self.member.reading() if isinstance(self.member, Member) else None

    def step(self, own: int) -> int:
        """The number of the next step: of this island's own count, or where it has just come to a state that the others
        have reached meanwhile, of theirs."""
        least, self._least = self._least, 0
        return max(own, least)

    def after_step(self, weight: float) -> None:
        if self.member is not None:
            sums = self._follower.sums(weight) if self._follower else {}
            self.member.after_step(weight, [sums[name] for name in self.mirror.tensors if sums])

    def _step_with(self, decision: Decision, mean: list[Tensor]) -> None:
        assert self._follower is not None
        step = self.given.plan.step_of(decision, self.given.global_batch)
        self._follower.step_with(step, dict(zip(self.mirror.tensors, mean, strict=True)))

    def finish(self) -> None:
        """Wait for the agreement that is under way."""
        while not (order := self._told(self.member.last() if self.member else None)).is_over:
            self._follow(order)

    def _follow(self, order: Order) -> None:
        self._least = max(self._least, order.least)
        if order.is_exchange:
            self.mirror.bring()
            if self._told(self.member.exchange() if self.member else None):
                self.mirror.take_back()

    def _told(self, value: T | None) -> T:
        """What the first worker says."""
        told = [value]
        if self.island.place.num_workers > 1:
            dist.broadcast_object_list(told, src=0)
        assert told[0] is not None
        return told[0]

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.member is not None:
            self.member.__exit__(kind, error, at)

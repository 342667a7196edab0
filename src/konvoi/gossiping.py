"""An island that gossips over the network: what its workers do next, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from konvoi.fleet.worker import Place
from konvoi.meeting import Meeting
from konvoi.observe.events import Averaged, Emit
from konvoi.pairing import LivePairs
from konvoi.plan.exchange.anchor import check_kind
from konvoi.plan.exchange.chunks import CHUNK
from konvoi.plan.sync import frames
from konvoi.presence import LEAVE_S, LOOK_S, Order, Presence
from konvoi.task import Membership


class Gossiper(Presence):
    """Each island reads its own share of every global batch: nobody leases, and nobody's end ends it."""

    def __init__(
        self,
        given: Membership,
        parameters: Mapping[str, Tensor],
        place: Place,
        emit: Emit,
        meeting: Meeting | None = None,
        step: int = 0,
    ) -> None:
        """`parameters`: those that are averaged, whole. `step`: those that were taken before. Raises: PlanError."""
        size = sum(p.numel() * p.itemsize for p in parameters.values())
        check_kind([*parameters.values()])
        super().__init__(
            given, place, emit, encode=frames.encode_swap, decode=frames.decode_swap, largest=max(CHUNK, size)
        )
        self.names, self.told = given.first.members, 0
        self.live = LivePairs(given.name, self.names, given.plan, parameters, self.wire, place.attempt, step)
        self.is_ended = False
        self.meet(meeting)

    def facts(self) -> dict[str, Any]:
        live = self.live
        return {"round": len(live.partners), "step": live.step, "refused": live.num_refused, **super().facts()}

    def next(self) -> Order:
        """What all workers of this island do next. It waits a while where somebody has to answer first."""
        if self.is_over():
            return Order(is_over=True)
        begin = time.monotonic()
        order = Order(is_exchange=self.live.look(LOOK_S))
        if not order.is_exchange and not self.live.state.is_holding:
            given, step = self.given, self.live.step
            start = step * given.global_batch + self.names.index(given.name) * given.batch
            order = Order(ranges=((start, start + given.batch),), least=step + 1)
        self.pace.waited(time.monotonic() - begin)
        return order

    def last(self) -> Order:
        """As `next`, after the last step: until all have the mean of all."""
        live = self.live
        if not live.state.is_leaving:
            live.leave()
        self.until = self.until or time.monotonic() + LEAVE_S
        is_late = self.is_over() and time.monotonic() > self.until
        if self.is_ended or is_late:
            return Order(is_over=True)
        return Order(is_exchange=live.look(LOOK_S) or live.can_end())

    def exchange(self) -> bool:
        """Do what had to wait until no step was under way; whether the weights are others now."""
        live, before = self.live, self.live.num_writes
        live.catch_up()
        if live.can_end():
            self.is_ended = live.end()
        return live.num_writes != before

    def after_step(self, weight: float, gradients: Sequence[Tensor] = ()) -> None:
        self.live.stepped()
        self.pace.stepped(self.given.batch)
        for peer in self.live.partners[self.told :]:
            self.told += 1
            self.emit(Averaged(peer=peer, count=self.told, sent_bytes=self.wire.sent_bytes))

    def leave(self) -> None:
        """Others may still fetch this island's last weights."""
        self.meeting.say_done()
        until = time.monotonic() + LEAVE_S
        while not self.meeting.all_done(self.names):
            if self.is_over() and time.monotonic() > until:
                break
            time.sleep(LOOK_S / 5)
        self.live.close()

"""An island in a convoy over the network: it meets the others, says what its workers do next, agrees, and leaves."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from konvoi.convoy import LiveConvoy
from konvoi.errors import FleetError
from konvoi.fleet.worker import Place
from konvoi.meeting import Meeting
from konvoi.observe.events import Agreed, Emit, StateFetched
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import CHUNK
from konvoi.plan.sync import events as ev
from konvoi.plan.sync import frames
from konvoi.presence import LEAVE_S, LOOK_S, Order, Presence
from konvoi.state.journal import Journal, write
from konvoi.task import Membership


class Member(Presence):
    """Of a convoy whose islands agree all with all, or by servers."""

    def __init__(
        self,
        given: Membership,
        parameters: Mapping[str, Tensor],
        place: Place,
        emit: Emit,
        meeting: Meeting | None = None,
        beside: Sequence[Tensor] = (),
    ) -> None:
        """`parameters`: those that are agreed on, whole; `beside` as `Anchor` has it."""
        anchor = Anchor(parameters, given.plan, given.num_parts, beside)
        largest = max(CHUNK, anchor.largest_part())
        super().__init__(given, place, emit, encode=frames.encode, decode=frames.decode, largest=largest)
        rules = given.plan.rules(given.num_parts, given.batch * given.plan.steps_per_round)
        journal = Journal(self.folder / "journal")
        self.live = LiveConvoy(given.name, given.plan, rules, given.first, anchor, self.wire, journal)
        self.told = self.live.state.last.round
        self.alone_since, self.was_left = math.inf, False
        self.meet(meeting)

    def facts(self) -> dict[str, Any]:
        live, state = self.live, self.live.state
        own = {"round": state.last.round, "step": live.step, "stands": state.stands}
        return {**own, "refused": live.refused.total(), **super().facts()}

    def reformed(self, count: int, name: str) -> None:
        done = self.folder / "reforms"  # as many as this island knows of
        if count <= (int(done.read_text()) if done.exists() else 0):
            return
        write(done, str(count).encode())
        if name != self.given.name:
            return
        before = self.live.state.last.round
        self.live.happen(ev.Reform())
        said = "a person has said that a majority is gone for good"
        if self.live.state.last.round > before:
            self.warn(f"{said}: this island goes on alone, and the others come anew")
        else:
            self.warn(f"{said}, and that it goes on as this island has it; but this one has just nothing to go on from")

    def next(self) -> Order:
        """What all workers of this island do next. It waits a while where the others have to agree first."""
        if self.is_over():
            return Order(is_over=True)
        begin = time.monotonic()
        order, batch = self._look(), self.given.batch
        if not order.is_exchange and not self.live.is_holding:
            ranges = self.live.positions(batch)
            if sum(stop - start for start, stop in ranges) == batch:
                order = Order(ranges=ranges, least=self._arrived())
        if order == Order() and self._is_left_behind():
            return Order(is_over=True)
        if order == Order():
            time.sleep(LOOK_S / 5)  # for a decision, which leases more
        self.pace.waited(time.monotonic() - begin)
        return order

    def serve(self) -> None:
        """As a server, until the islands have taken their last steps or have left, or a stop is asked for."""
        islands, until = self.given.first.members, math.inf
        while time.monotonic() < until and not self.meeting.all_done(islands):
            if self.is_over() and until == math.inf:
                until = time.monotonic() + 2 * LEAVE_S  # for what the islands agree on at a stop
            if self.live.look(0):
                self.live.catch_up()
            self._tell()
            time.sleep(LOOK_S / 5)

    def last(self) -> Order:
        """As `next`, after the last step: until what was done since the last agreement is agreed on, too."""
        if not self.live.state.is_ending:
            self.live.happen(ev.Ending())
        order = self._look()
        self.until = self.until or time.monotonic() + LEAVE_S
        is_late = self.is_over() and time.monotonic() > self.until
        if not order.is_exchange and (self.live.is_settled() or is_late or self._is_left_behind()):
            self._tell()
            return Order(is_over=True)
        if not order.is_exchange:
            time.sleep(LOOK_S / 5)
        return order

    def _is_left_behind(self) -> bool:
        """It died, or was cut off, and before it was back with the others they have taken their last steps. Who has,
        and can still be reached, tells it what was agreed on.

        Raises: FleetError where it was alone when it died, and so has the agreed state with it."""
        if self.was_left:
            return True
        state, now = self.live.state, time.monotonic()
        others = {*self.given.first.members, *state.everybody} - {self.given.name}
        is_last, have_ended = state.everybody == (self.given.name,), bool(others) and self.meeting.all_done(others)
        is_well = state.stands and (is_last or not have_ended or self._reaches(others))
        if is_well or not (is_last or have_ended):
            self.alone_since = math.inf
            return False
        self.alone_since = min(self.alone_since, now)
        if now < self.alone_since + LEAVE_S and (state.stands or not have_ended):
            return False
        if not have_ended:
            raise FleetError(
                "nobody has the agreed state any more: this island was alone, and its process ended",
                hint="begin anew, from a checkpoint where there is one",
            )
        self.was_left = True
        self.warn("the others ended before this island was back with them")
        return True

    def _reaches(self, others: Collection[str]) -> bool:
        return any(count for name, count in self.wire.open_lanes().items() if name in others)

    def _look(self) -> Order:
        return Order(is_exchange=self.live.look(LOOK_S))

    def reading(self) -> dict[str, Any]:
        """How far the convoy has come in its data, for a checkpoint."""
        return dataclasses.asdict(self.live.reading())

    def exchange(self) -> bool:
        """Do what had to wait until no step was under way; whether the weights are others now."""
        before = self.live.anchor.num_writes
        self.live.catch_up()
        return self.live.anchor.num_writes != before

    def _arrived(self) -> int:
        """Where it has just come to a state that the others have reached meanwhile: the step that follows it. Where
        islands need not take as many, each has its steps on the convoy's schedule."""
        plan = self.given.plan
        if self.live.arrival is None:
            is_shared = plan.is_quick or plan.pace == "time"
            return plan.step_of(self.live.state.last, self.given.global_batch) + 1 if is_shared else 0
        (decision, size, seconds), self.live.arrival = self.live.arrival, None
        self.emit(StateFetched(round=decision.round, size_bytes=size, seconds=seconds))
        return plan.step_of(decision, self.given.global_batch) + 1

    def after_step(self, weight: float, gradients: Sequence[Tensor] = ()) -> None:
        """With gradients, their sums: none was taken."""
        self.live.stepped(self.given.batch, weight, gradients)
        self.pace.stepped(self.given.batch)
        self._tell()

    def _tell(self) -> None:
        """What was agreed since this was called last."""
        state = self.live.state
        for decision in state.kept:
            if decision.round > self.told:
                self.told = decision.round
                counted = {update.member: update.samples for update in decision.updates}
                every, sent = decision.every, self.wire.sent_bytes
                self.emit(Agreed(round=decision.round, counted=counted, sent_bytes=sent, every=every))

    def leave(self) -> None:
        """The others have to agree to it; until then they may need this island's vote, and what it holds."""
        self.meeting.say_done()
        if self.live.state.can_be_member:
            self.live.happen(ev.Leaving())
        until = time.monotonic() + LEAVE_S
        while not self.live.is_out and not self.meeting.all_done(self.live.state.last.members):
            is_empty = not self.live.state.last.members  # all have left, and some are gone already
            if (is_empty or self.is_over()) and time.monotonic() > until:
                return
            time.sleep(LOOK_S / 5)

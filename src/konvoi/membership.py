"""An island in a convoy over the network: it meets the others, says what its workers do next, agrees, and leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor

from konvoi.convoy import LiveConvoy
from konvoi.fleet.wire.grpc import Peers
from konvoi.fleet.wire.lanes import lanes_wanted
from konvoi.fleet.worker import Place
from konvoi.meeting import AtDesk, Folder, Meeting, Pace
from konvoi.observe.events import Agreed, Emit, StateFetched, Warned
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import CHUNK
from konvoi.plan.sync import events as ev
from konvoi.plan.sync import frames
from konvoi.plan.sync.messages import Range
from konvoi.security.identity import Identity
from konvoi.state.journal import Journal
from konvoi.task import Membership

LEAVE_S = 5.0  # where a stop was asked for
LOOK_S = 0.1
PATIENCE_S = 5.0  # with an island that is to open its lanes


@dataclass(frozen=True)
class Order:
    """What the workers of an island do next, all of them."""

    is_over: bool = False
    is_exchange: bool = False
    ranges: tuple[Range, ...] = ()  # of positions, for a step
    least: int = 0  # what the step's number is at least


class Member:
    """Use with `with`. The first worker of an island has it."""

    def __init__(
        self,
        given: Membership,
        parameters: Mapping[str, Tensor],
        place: Place,
        emit: Emit,
        meeting: Meeting | None = None,
        beside: Sequence[Tensor] = (),
    ) -> None:
        """`parameters`: those that are agreed on, whole; `beside` as `Anchor` has it. Without a meeting islands meet in
        a folder, or at a desk."""
        self.given, self.is_over, self.emit = given, place.stop_requested, emit
        self.pace, self.dialed, self.banned = Pace(), set[str](), set[str]()
        self.said: set[tuple[str, str]] = set()  # who was refused, and why
        self.until = 0.0  # for a last agreement, where a stop was asked for
        folder = given.folder / given.name
        public = given.federation.public if given.federation is not None else ""
        port = public.rpartition(":")[2] or "0"
        anchor = Anchor(parameters, given.plan, given.num_parts, beside)
        self.wire = Peers(
            Identity.load(folder),
            hello=given.run.encode(),
            encode=frames.encode,
            decode=frames.decode,
            address=f"{given.address}:{port}",
            num_lanes=lanes_wanted(given.address),
            largest=max(CHUNK, anchor.largest_part()),
            on_refused=self._refused,
        )
        rules = given.plan.rules(given.num_parts, given.batch * given.plan.steps_per_round)
        self.live = LiveConvoy(
            given.name, given.plan, rules, given.first, anchor, self.wire, Journal(folder / "journal")
        )
        self.told = self.live.state.last.round
        self.meeting = meeting or Folder(given.folder, given.name, given.address)
        if given.federation is not None:
            self.meeting = AtDesk(given.federation, folder, facts=self.facts, heard=self._heard, warn=self.warn)
        self.meeting.begin(self.wire.port)
        self._heard((*given.first.members, *given.first.voters), ())

    def _refused(self, peer: str, why: str) -> None:
        if (peer, why) not in self.said and peer not in self.banned:
            self.said.add((peer, why))
            self.warn(f"{peer or 'somebody unknown'} was refused: {why}")

    def warn(self, text: str) -> None:
        self.emit(Warned(message=text))

    def _heard(self, members: Iterable[str], revoked: Iterable[str]) -> None:
        """Of two islands the one whose name comes later opens the lanes; the other tries too, where it has waited long,
        as the first may not be able to."""
        for name in {*members} - {self.given.name} - self.dialed:
            self.dialed.add(name)
            self.wire.dial({name: partial(self._where, name, time.monotonic())})
        for name in {*revoked} - self.banned:
            self.banned.add(name)
            self.warn(f"{name} is no member any more: nothing more is heard of it")
            self.wire.ban(name)

    def _where(self, name: str, since: float) -> str | None:
        is_others_turn = name > self.given.name
        if is_others_turn and (time.monotonic() < since + PATIENCE_S or self.wire.open_lanes().get(name)):
            return None
        return self.meeting.where(name)

    def facts(self) -> dict[str, Any]:
        """For whoever asks who is slow, and why."""
        live = self.live
        return {
            "round": live.state.last.round,
            "step": live.step,
            "stands": live.state.stands,
            "reaches": sorted(self.wire.open_lanes()),
            "refused": live.refused.total(),
            **self.pace.take(),
        }

    def next(self) -> Order:
        """What all workers of this island do next. It waits a while where the others have to agree first."""
        if self.is_over() or self._is_left_behind():
            return Order(is_over=True)
        begin = time.monotonic()
        order, batch = self._look(), self.given.batch
        if not order.is_exchange and not self.live.is_holding:
            ranges = self.live.positions(batch)
            if sum(stop - start for start, stop in ranges) == batch:
                order = Order(ranges=ranges, least=self._arrived())
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
        """It died, and before it was back with the others they have taken their last steps."""
        others = {*self.given.first.members} - {self.given.name}
        if self.live.state.stands or not others or not self.meeting.all_done(others):
            return False
        self.warn("the others ended before this island was back with them")
        return True

    def _look(self) -> Order:
        return Order(is_exchange=self.live.look(LOOK_S))

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

    def __enter__(self) -> Member:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._leave()
        self.meeting.close()
        self.wire.close()

    def _leave(self) -> None:
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

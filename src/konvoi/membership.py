"""An island in a convoy over the network: it meets the others, reads what is leased to it, agrees, and leaves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor

from konvoi.convoy import LiveConvoy
from konvoi.fleet.wire.grpc import Peers
from konvoi.fleet.worker import Place
from konvoi.job.data.loader import Leased
from konvoi.meeting import AtDesk, Folder, Meeting, Pace
from konvoi.observe.events import Agreed, Emit, StateFetched, Warned
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import CHUNK
from konvoi.plan.sync import events as ev
from konvoi.plan.sync import frames
from konvoi.security.identity import Identity
from konvoi.state.journal import Journal
from konvoi.task import Task
from konvoi.values import MicroBatch

LEAVE_S = 5.0  # where a stop was asked for
LOOK_S = 0.1
PATIENCE_S = 5.0  # with an island that is to open its lanes


class Member:
    """Use with `with`."""

    def __init__(self, task: Task, parameters: Mapping[str, Tensor], place: Place, emit: Emit) -> None:
        """`parameters`: all of the model's; those that are trained are agreed on."""
        assert task.membership is not None
        self.task, self.given, self.is_over = task, task.membership, place.stop_requested
        given = self.given
        self.emit = emit
        self.pace, self.dialed, self.banned = Pace(), set[str](), set[str]()
        self.said: set[tuple[str, str]] = set()  # who was refused, and why
        folder = given.folder / given.name
        public = given.federation.public if given.federation is not None else ""
        port = public.rpartition(":")[2] or "0"
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        anchor = Anchor(trained, given.plan, given.num_parts)
        self.wire = Peers(
            Identity.load(folder),
            hello=given.run.encode(),
            encode=frames.encode,
            decode=frames.decode,
            address=f"{given.address}:{port}",
            largest=max(CHUNK, anchor.largest_part()),
            on_refused=self._refused,
        )
        rules = given.plan.rules(given.num_parts, given.batch * given.plan.steps_per_round)
        self.live = LiveConvoy(
            given.name, given.plan, rules, given.first, anchor, self.wire, Journal(folder / "journal")
        )
        self.told = self.live.state.last.round
        self.meeting: Meeting = Folder(given.folder, given.name, given.address)
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
            "refused": sum(live.refused.values()),
            **self.pace.take(),
        }

    def batches(self) -> Iterator[list[MicroBatch]]:
        """What is leased to this island, a step's at a time; it waits where the others have to agree first."""
        job = self.task.prepared.job
        samples = Leased(self.task.prepared.splits.train, seed=job.seed, collate=job.collate)
        while not self.is_over():
            begin = time.monotonic()
            ranges = self.live.positions(self.given.batch) if self.live.wait(LOOK_S) else ()
            if _size(ranges) == self.given.batch:
                self.pace.waited(time.monotonic() - begin)
                yield samples.read(ranges)
            else:
                time.sleep(LOOK_S / 5)  # for a decision, which leases more
                self.pace.waited(time.monotonic() - begin)

    def step(self, own: int) -> int:
        """The number of the next step: of this island's own count, or where it has just come to a state that the others
        have reached meanwhile, of theirs."""
        if self.live.arrival is None:
            return own
        (round, size, seconds), self.live.arrival = self.live.arrival, None
        self.emit(StateFetched(round=round, size_bytes=size, seconds=seconds))
        return min(max(own, round * self.given.plan.steps_per_round + 1), self.task.prepared.num_steps)

    def after_step(self, weight: float) -> None:
        self.live.after_step(self.given.batch, weight)
        self.pace.stepped(self.given.batch)
        self._tell()

    def _tell(self) -> None:
        """What was agreed since this was called last."""
        state = self.live.state
        for decision in state.kept:
            if decision.round > self.told:
                self.told = decision.round
                counted = {update.member: update.samples for update in decision.updates}
                self.emit(Agreed(round=decision.round, counted=counted, sent_bytes=self.wire.sent_bytes))

    def finish(self) -> None:
        """Wait for the agreement that is under way."""
        while not self.live.is_settled() and not self.is_over():
            time.sleep(LOOK_S / 5)
        self._tell()

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
        self.live.happen(ev.Leaving())
        until = time.monotonic() + LEAVE_S
        while not self.live.is_out and not self.meeting.all_done(self.live.state.last.members):
            is_empty = not self.live.state.last.members  # all have left, and some are gone already
            if (is_empty or self.is_over()) and time.monotonic() > until:
                return
            time.sleep(LOOK_S / 5)


def _size(ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(stop - start for start, stop in ranges)

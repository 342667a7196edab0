"""An island among others over the network, whatever they agree on: it listens, meets them, and keeps lanes open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from konvoi.fleet.wire.grpc import Peers
from konvoi.fleet.wire.lanes import lanes_wanted
from konvoi.fleet.worker import Place
from konvoi.meeting import AtDesk, Folder, Meeting, Pace
from konvoi.observe.events import Emit, Warned
from konvoi.plan.sync.messages import Range
from konvoi.security.identity import Identity
from konvoi.task import Membership

PATIENCE_S = 5.0  # with an island that is to open its lanes
LEAVE_S = 5.0  # where a stop was asked for
LOOK_S = 0.1


@dataclass(frozen=True)
class Order:
    """What the workers of an island do next, all of them."""

    is_over: bool = False
    is_exchange: bool = False
    ranges: tuple[Range, ...] = ()  # of positions, for a step
    least: int = 0  # what the step's number is at least


class Presence:
    """Use with `with`. The first worker of an island has it."""

    def __init__(
        self,
        given: Membership,
        place: Place,
        emit: Emit,
        *,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        largest: int,
    ) -> None:
        """`largest`: bytes that may be fetched at once."""
        self.given, self.is_over, self.emit = given, place.stop_requested, emit
        self.pace, self.dialed, self.banned = Pace(), set[str](), set[str]()
        self.said: set[tuple[str, str]] = set()  # who was refused, and why
        self.until = 0.0  # for a last agreement, where a stop was asked for
        self.folder = given.folder / given.name
        public = given.federation.public if given.federation is not None else ""
        self.wire = Peers(
            Identity.load(self.folder),
            hello=given.run.encode(),
            encode=encode,
            decode=decode,
            address=f"{given.address}:{public.rpartition(':')[2] or '0'}",
            num_lanes=lanes_wanted(given.address),
            largest=largest,
            on_refused=self._refused,
        )

    def meet(self, meeting: Meeting | None) -> None:
        """Be found, and find the others. Without a meeting islands meet in a folder, or at a desk."""
        given = self.given
        self.meeting = meeting or Folder(given.folder, given.name, given.address)
        if given.federation is not None:
            self.meeting = AtDesk(given.federation, self.folder, facts=self.facts, heard=self._heard, warn=self.warn)
        self.meeting.begin(self.wire.port)
        self._heard((*given.first.members, *given.first.voters), (), ())

    def facts(self) -> dict[str, Any]:
        """For whoever asks who is slow, and why."""
        return {"reaches": sorted(self.wire.open_lanes()), **self.pace.take()}

    def warn(self, text: str) -> None:
        self.emit(Warned(message=text))

    def _refused(self, peer: str, why: str) -> None:
        if (peer, why) not in self.said and peer not in self.banned:
            self.said.add((peer, why))
            self.warn(f"{peer or 'somebody unknown'} was refused: {why}")

    def _heard(self, members: Iterable[str], revoked: Iterable[str], reforms: Sequence[str]) -> None:
        """Of two islands the one whose name comes later opens the lanes; the other tries too, where it has waited long,
        as the first may not be able to."""
        for name in {*members} - {self.given.name} - self.dialed:
            self.dialed.add(name)
            self.wire.dial({name: partial(self._where, name, time.monotonic())})
        for name in {*revoked} - self.banned:
            self.banned.add(name)
            self.warn(f"{name} is no member any more: nothing more is heard of it")
            self.wire.ban(name)
        if reforms:
            self.reformed(len(reforms), reforms[-1])

    def reformed(self, count: int, name: str) -> None:
        """A person has let one member go on without a majority, for the `count`th time."""

    def _where(self, name: str, since: float) -> str | None:
        is_others_turn = name > self.given.name
        if is_others_turn and (time.monotonic() < since + PATIENCE_S or self.wire.open_lanes().get(name)):
            return None
        return self.meeting.where(name)

    def leave(self) -> None:
        """The last step is taken, and agreed on."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.leave()
        self.meeting.close()
        self.wire.close()

"""Gossip, as a pure machine: now and then an island and one other take the mean of their weights. No roster, no vote.

    initiator   Snapshot -> Swap
    partner                 Swap -> Halve -> Swapped
    initiator                                Swapped -> Take

The partner takes half of the difference at once, and the initiator, when it hears of it, the same half with the other
sign: the sum over all islands stays, whatever the encoding leaves out and whatever was learnt meanwhile (Lian et al.,
Asynchronous Decentralized Parallel SGD, arXiv 1710.06952, section 3). An island is in one exchange at a time. What is
said twice is done once. An initiator gives up whom it does not reach any more: then, and only then, the sum may change.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Id = tuple[str, int, int]  # of an exchange: who has begun it, in which life, and the how manyeth
PATIENCE = 8  # beats without an answer of somebody who is out of reach


@dataclass(frozen=True)
class Rules:
    every: int = 8  # steps between two exchanges that an island begins or is asked to
    max_ahead: int = 0  # steps behind a snapshot without an answer; then the island waits
    beat_s: float = 2.0


# -- what is said, what happens, what is done ------------------------------------------------------------------------


@dataclass(frozen=True)
class Swap:
    """Somebody's weights can be fetched under a hash; half of the difference is wanted."""

    id: Id
    hash: str


@dataclass(frozen=True)
class Swapped:
    """The half, which is taken already."""

    id: Id
    hash: str


@dataclass(frozen=True)
class Busy:
    id: Id


Message = Swap | Swapped | Busy


@dataclass(frozen=True)
class Stepped:
    step: int


@dataclass(frozen=True)
class Snapshotted:
    id: Id
    hash: str


@dataclass(frozen=True)
class Halved:
    """What `Halve` asks for is done."""

    id: Id
    hash: str


@dataclass(frozen=True)
class Taken:
    """What `Take` asks for is done."""

    id: Id


@dataclass(frozen=True)
class Failed:
    """What was fetched for an exchange is no such thing."""

    id: Id


@dataclass(frozen=True)
class Beat:
    """To be called every `beat_s` seconds."""


@dataclass(frozen=True)
class Received:
    sender: str
    message: Message


@dataclass(frozen=True)
class Reaches:
    """A hint of the wire."""

    peer: str
    whether: bool


@dataclass(frozen=True)
class Leaving:
    """No exchange is begun any more."""


Event = Stepped | Snapshotted | Halved | Taken | Failed | Beat | Received | Reaches | Leaving


@dataclass(frozen=True)
class Send:
    to: str
    message: Message


@dataclass(frozen=True)
class Snapshot:
    id: Id


@dataclass(frozen=True)
class Halve:
    """Fetch `peer`'s weights; between two steps encode half of the difference to them, and take it. Nothing of that
    happens once `State.guest` is another."""

    id: Id
    peer: str
    hash: str


@dataclass(frozen=True)
class Take:
    """Fetch the half, and take it with the other sign, between two steps."""

    id: Id
    peer: str
    hash: str


Action = Send | Snapshot | Halve | Take


@dataclass(frozen=True)
class Exchange:
    id: Id
    peer: str
    step: int
    hash: str = ""  # of the initiator's weights, when they are there
    is_taking: bool = False
    beats: int = 0  # since the peer was last within reach


@dataclass
class State:
    """Handed from event to event, and copied before it is changed."""

    me: str
    peers: tuple[str, ...]
    rules: Rules
    life: int = 0  # another one for each process of this island
    step: int = 0
    due: int = 0  # the step of the next exchange that this island begins
    count: int = 0  # of exchanges that it has begun
    own: Exchange | None = None
    guest: Exchange | None = None
    answered: Mapping[str, tuple[Id, str]] = field(
        default_factory=dict
    )  # by initiator: the last, and its half; or "": no
    lost: frozenset[str] = frozenset()
    is_leaving: bool = False

    @property
    def is_holding(self) -> bool:
        """Whether the next step has to wait for an answer."""
        return self.own is not None and self.step - self.own.step >= self.rules.max_ahead


def begin(me: str, peers: tuple[str, ...], rules: Rules, life: int = 0) -> State:
    """
    >>> begin("a", ("a", "b"), Rules(every=4)).due
    4
    """
    return State(me, tuple(peer for peer in peers if peer != me), rules, life, due=rules.every)


def advance(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """What follows from an event. The state that is given stays as it is."""
    s, out = copy.copy(state), list[Action]()
    own, guest = s.own, s.guest
    if isinstance(event, Stepped):
        s.step = event.step
    elif isinstance(event, Snapshotted) and own is not None and own.id == event.id:
        s.own = replace(own, hash=event.hash)
        out.append(Send(own.peer, Swap(own.id, event.hash)))
    elif isinstance(event, Halved) and guest is not None and guest.id == event.id:
        s.answered = {**s.answered, guest.peer: (guest.id, event.hash)}
        s.guest, s.due = None, max(s.due, s.step + s.rules.every)
        out.append(Send(guest.peer, Swapped(guest.id, event.hash)))
    elif isinstance(event, Taken) and own is not None and own.id == event.id:
        s.own, s.due = None, max(own.step + s.rules.every, s.step + 1)
    elif isinstance(event, Failed):
        if guest is not None and guest.id == event.id:
            s.guest, s.answered = None, {**s.answered, guest.peer: (guest.id, "")}
            out.append(Send(guest.peer, Busy(guest.id)))
        elif own is not None and own.id == event.id:
            s.own = None
        s.due = max(s.due, s.step + 1)
    elif isinstance(event, Beat):
        _beat(s, out)
    elif isinstance(event, Reaches):
        s.lost = s.lost - {event.peer} if event.whether else s.lost | {event.peer}
    elif isinstance(event, Leaving):
        s.is_leaving = True
    elif isinstance(event, Received):
        _receive(s, out, event.sender, event.message)
    _begin(s, out)
    return s, tuple(out)


def _begin(s: State, out: list[Action]) -> None:
    """Ask somebody, or, every other time, wait a step to be asked: where all ask at once, all are refused."""
    there = [peer for peer in s.peers if peer not in s.lost]
    if s.own is not None or s.guest is not None or not there or s.step < s.due or s.is_leaving:
        return
    if _draw((s.me, s.life, -s.step)) % 2:
        s.due = s.step + 1
        return
    s.count += 1
    id = (s.me, s.life, s.count)
    s.own = Exchange(id, there[_draw(id) % len(there)], s.step)
    out.append(Snapshot(id))


def _draw(id: Id) -> int:
    """The same on every machine, and different from exchange to exchange."""
    return int.from_bytes(hashlib.blake2b(repr(id).encode(), digest_size=8).digest())


def _beat(s: State, out: list[Action]) -> None:
    """Say again what was not answered, and give up who is away."""
    own, guest = s.own, s.guest
    if own is not None:
        own = s.own = replace(own, beats=own.beats + 1 if own.peer in s.lost else 0)
        if own.beats > PATIENCE:
            s.own, s.due = None, s.step + 1
        elif own.hash and not own.is_taking:
            out.append(Send(own.peer, Swap(own.id, own.hash)))
    if guest is not None:
        guest = s.guest = replace(guest, beats=guest.beats + 1 if guest.peer in s.lost else 0)
        if guest.beats > PATIENCE:
            s.guest = None


def _receive(s: State, out: list[Action], sender: str, message: Message) -> None:
    own, guest = s.own, s.guest
    if isinstance(message, Swap):
        known = s.answered.get(sender)
        if message.id[0] != sender or sender not in s.peers or (known and message.id < known[0]):
            return  # of a stranger, or old
        if known and message.id == known[0]:  # what was answered stays
            out.append(Send(sender, Swapped(*known) if known[1] else Busy(message.id)))
        elif guest is None and own is None and not s.is_leaving:
            s.guest = Exchange(message.id, sender, s.step, message.hash)
            out.append(Halve(message.id, sender, message.hash))
        elif guest is not None and guest.id == message.id:  # what was fetched may have been gone
            out.append(Halve(message.id, sender, message.hash))
        else:
            s.answered = {**s.answered, sender: (message.id, "")}
            out.append(Send(sender, Busy(message.id)))
    elif own is None or own.id != message.id or own.peer != sender or own.is_taking:
        return
    elif isinstance(message, Swapped):
        s.own = replace(own, is_taking=True)
        out.append(Take(own.id, sender, message.hash))
    else:
        s.own, s.due = None, s.step + 1

"""Gossip, as a pure machine: now and then an island and one other take the mean of their weights. No roster, no vote.

    initiator   Snapshot -> Swap
    partner                 Swap -> Halve -> Swapped
    initiator                                Swapped -> Take

The partner takes half of the difference at once, and the initiator, when it hears of it, the same half with the other
sign: the sum over all islands stays, whatever the encoding leaves out and whatever was learnt meanwhile (Lian et al.,
Asynchronous Decentralized Parallel SGD, arXiv 1710.06952, section 3). An island is in one exchange at a time. What is
said twice is done once. An initiator gives up whom it does not reach any more: then, and only then, the sum may change.

An island that is back takes a neighbour's weights, whole, before its first step. At the end all tell their last
weights, and go out with their mean: the same one, bit by bit, where nobody was away for long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from konvoi.plan.sync.state import copied
from konvoi.plan.sync.swaps import (
    Action,
    Adopt,
    Adopted,
    Bare,
    Beat,
    Busy,
    Collect,
    Collected,
    Ended,
    Event,
    Failed,
    Halve,
    Halved,
    Id,
    Last,
    Leaving,
    Lend,
    Lent,
    Message,
    Offer,
    Offered,
    Reaches,
    Received,
    Send,
    Snapshot,
    Snapshotted,
    Stepped,
    Swap,
    Swapped,
    Take,
    Taken,
)

PATIENCE = 8  # beats without an answer of somebody who is out of reach
LENDING = 30  # beats for which weights that were lent can be fetched


@dataclass(frozen=True)
class Rules:
    every: int = 8  # steps between two exchanges that an island begins or is asked to
    max_ahead: int = 0  # steps behind a snapshot without an answer; then the island waits
    beat_s: float = 2.0


@dataclass(frozen=True)
class Exchange:
    id: Id
    peer: str
    step: int
    hash: str = ""  # of the initiator's weights, when they are there
    half: str = ""  # of the partner's answer, when it is to be taken
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
    away: Mapping[str, int] = field(default_factory=dict)  # those who are out of reach, and for how many beats
    is_back: bool = False  # its weights are old, or none
    bare: frozenset[str] = frozenset()  # who is back, too
    adopting: Lent | None = None
    lender: str = ""  # of that
    beats: int = 0
    lent: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # to whom: which weights, and at which beat
    is_leaving: bool = False
    ended: Last | None = None
    lasts: Mapping[str, str] = field(default_factory=dict)  # others' weights at their end; "": they had none
    collected: frozenset[str] = frozenset()  # those whose are here

    @property
    def is_holding(self) -> bool:
        """Whether the next step has to wait for an answer."""
        is_far = self.own is not None and self.step - self.own.step >= self.rules.max_ahead
        return is_far or self.is_back

    @property
    def has_all(self) -> bool:
        """Whether everybody's last weights are here, but those of who has been away for long."""
        rest = {*self.peers} - self.collected
        return self.ended is not None and all(self.away.get(peer, 0) > PATIENCE for peer in rest)

    @property
    def held(self) -> set[str]:
        """What others may want to fetch, and what was fetched and is not used yet."""
        told = [half for _, half in self.answered.values()] + [hash for hash, _ in self.lent.values()]
        under_way = [hash for one in (self.own, self.guest) if one is not None for hash in (one.hash, one.half)]
        ends = [*self.lasts.values(), *(one.hash for one in (self.adopting, self.ended) if one is not None)]
        return {*told, *under_way, *ends} - {""}


def begin(
    me: str, peers: tuple[str, ...], rules: Rules, life: int = 0, *, step: int = 0, is_back: bool = False
) -> State:
    """`step`: those that were taken before; `is_back`: others have gone on meanwhile.

    >>> begin("a", ("a", "b"), Rules(every=4)).due
    4
    """
    others = tuple(peer for peer in peers if peer != me)
    away = dict.fromkeys(others, 0) if is_back else {}
    return State(me, others, rules, life, step=step, due=step + rules.every, away=away, is_back=is_back)


def advance(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """What follows from an event. The state that is given stays as it is."""
    s = copied(state)
    out: list[Action] = []
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
            s.own = None  # the partner's process is another one by now, or lies
        s.due = max(s.due, s.step + 1)
    elif isinstance(event, Beat):
        _beat(s, out)
    elif isinstance(event, Reaches):
        s.away = {peer: beats for peer, beats in s.away.items() if peer != event.peer}
        if not event.whether:
            s.away = {**s.away, event.peer: 0}
            s.lent = {peer: told for peer, told in s.lent.items() if peer != event.peer}
        elif s.is_back and not s.adopting:
            out.append(Send(event.peer, Lend()))
    elif isinstance(event, Offered):
        s.lent = {**s.lent, event.peer: (event.hash, s.beats)}
        out.append(Send(event.peer, Lent(s.step, event.hash)))
    elif isinstance(event, Adopted):
        s.adopting, s.lender = None, ""
        if event.step is not None:
            s.step, s.is_back = event.step, False
            s.due = s.step + s.rules.every
    elif isinstance(event, Leaving):
        s.is_leaving = True
    elif isinstance(event, Ended):
        s.ended = Last("" if s.is_back else event.hash)
        out += [Send(peer, s.ended) for peer in s.peers]
    elif isinstance(event, Collected):
        s.collected |= {event.peer}
    elif isinstance(event, Received):
        _receive(s, out, event.sender, event.message)
    _begin(s, out)
    return s, tuple(out)


def _begin(s: State, out: list[Action]) -> None:
    """Ask somebody, or, every other time, wait a step to be asked: where all ask at once, all are refused."""
    there = [peer for peer in _there(s) if peer not in s.lasts]
    if s.own is not None or s.guest is not None or not there or s.step < s.due or s.is_leaving or s.is_back:
        return
    if _draw((s.me, s.life, -s.step)) % 2:
        s.due = s.step + 1
        return
    s.count += 1
    id = (s.me, s.life, s.count)
    s.own = Exchange(id, there[_draw(id) % len(there)], s.step)
    out.append(Snapshot(id))


def _there(s: State) -> list[str]:
    return [peer for peer in s.peers if peer not in s.away]


def _draw(id: Id) -> int:
    """The same on every machine, and different from exchange to exchange."""
    return int.from_bytes(hashlib.blake2b(repr(id).encode(), digest_size=8).digest())


def _beat(s: State, out: list[Action]) -> None:
    """Say again what was not answered, and give up who is away."""
    own, guest, there = s.own, s.guest, _there(s)
    s.beats += 1
    s.away = {peer: beats + 1 for peer, beats in s.away.items()}
    s.lent = {peer: (hash, beat) for peer, (hash, beat) in s.lent.items() if s.beats - beat <= LENDING}
    if s.lender in s.away:
        s.adopting, s.lender = None, ""
    if s.is_back and s.adopting is None and s.ended is None:
        rest = {*s.peers} - s.bare
        s.is_back = any(s.away.get(peer, 0) <= PATIENCE for peer in rest)  # else go on from what is here
        if s.is_back and there:
            out.append(Send(there[s.beats % len(there)], Lend()))
    if s.ended is not None:
        out += [Send(peer, s.ended) for peer in there]
    if own is not None:
        own = s.own = replace(own, beats=own.beats + 1 if own.peer in s.away else 0)
        if own.beats > PATIENCE:
            s.own, s.due = None, s.step + 1
        elif own.hash and not own.half:
            out.append(Send(own.peer, Swap(own.id, own.hash)))
    if guest is not None:
        guest = s.guest = replace(guest, beats=guest.beats + 1 if guest.peer in s.away else 0)
        if guest.beats > PATIENCE:
            s.guest = None


def _on_lend(s: State, out: list[Action], sender: str) -> None:
    if s.is_back:
        out.append(Send(sender, Bare()))
    elif s.ended is not None:  # nothing is done between two steps any more
        out.append(Send(sender, Lent(s.step, s.ended.hash)))
    elif sender in s.lent:
        s.lent = {**s.lent, sender: (s.lent[sender][0], s.beats)}
        out.append(Send(sender, Lent(s.step, s.lent[sender][0])))
    else:
        out.append(Offer(sender))


def _receive(s: State, out: list[Action], sender: str, message: Message) -> None:
    own, guest = s.own, s.guest
    if sender not in s.peers:
        return
    if isinstance(message, Lend):
        _on_lend(s, out, sender)
    elif isinstance(message, Bare):
        s.bare |= {sender}
    elif isinstance(message, Lent):
        if s.is_back and s.adopting is None and s.ended is None:
            s.adopting, s.lender = message, sender
            out.append(Adopt(sender, message.hash, message.step))
    elif isinstance(message, Last):
        s.lasts = {**s.lasts, sender: message.hash}
        if not message.hash:
            s.collected |= {sender}
        elif sender not in s.collected:
            out.append(Collect(sender, message.hash))
    elif isinstance(message, Swap):
        known = s.answered.get(sender)
        if message.id[0] != sender or (known and message.id < known[0]) or (guest and guest.id == message.id):
            return  # of somebody else, or old, or on its way
        if known and message.id == known[0]:  # what was answered stays
            out.append(Send(sender, Swapped(*known) if known[1] else Busy(message.id)))
        elif (guest is None or guest.peer == sender) and own is None and not s.is_leaving and not s.is_back:
            s.guest = Exchange(message.id, sender, s.step, message.hash)
            out.append(Halve(message.id, sender, message.hash))
        else:
            s.answered = {**s.answered, sender: (message.id, "")}
            out.append(Send(sender, Busy(message.id)))
    elif own is None or own.id != message.id or own.peer != sender or own.half:
        return
    elif isinstance(message, Swapped):
        s.own = replace(own, half=message.hash)
        out.append(Take(own.id, sender, message.hash))
    else:
        s.own, s.due = None, s.step + 1

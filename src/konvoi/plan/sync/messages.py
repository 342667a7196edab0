"""What the islands of a convoy tell each other about a round, and what is decided: values that name tensors by their
hashes and hold none. What carries bytes beside the message, a `Piece` or a `Result`, says so."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

Range = tuple[int, int]  # positions of the data's order: [start, stop)


@dataclass(frozen=True)
class Update:
    """How far an island has moved from an anchor, encoded, and what it has read for it."""

    member: str
    base: int  # the round whose anchor it moved from
    samples: int  # read for it: so many of the first positions that are leased to the member
    weight: float  # in the mean, as the objective counts: tokens or samples
    parts: tuple[str, ...]  # hashes of the encoded parts
    anchor: str = ""  # hash of the state that it moved from
    since: int = 0  # the decision in which the member's work was counted last, or with which it began
    cost: float = 0.0  # of the member's last exchange, in steps of its own; 0: not known

    @property
    def staleness(self) -> int:
        """Decisions that were taken meanwhile, without the member's work."""
        return self.base - self.since

    @cached_property
    def id(self) -> str:
        return _hash(self)


@dataclass(frozen=True)
class Decision:
    """The one result that a round can have. `Decision.first` is what a convoy begins with."""

    round: int
    previous: str  # id of the decision before
    updates: tuple[Update, ...]  # that went in, in the order in which they were added up
    owners: tuple[str, ...]  # who added them up: part p was owners[p % len(owners)]'s
    results: tuple[str, ...]  # hashes of the encoded sums, a part each; () where nothing was added up
    members: tuple[str, ...]  # whose updates count from now on
    voters: tuple[str, ...]  # who decides the next round
    leases: tuple[tuple[str, tuple[Range, ...]], ...]  # positions that each member is to read, in this order
    cursor: int  # the first position that was never leased
    returned: tuple[Range, ...] = ()  # leased to members that are gone, and not yet leased again
    anchor: str = ""  # hash of the state that the updates moved from; "" where there are none
    agreements: int = 0  # decisions so far in which something was added up
    steps: int = 0  # of the convoy's schedule, behind these agreements
    every: int = 0  # steps of the next round; 0: as many as the plan says
    rung: int = 0  # with which the next round's updates and sums are encoded, where the plan has several

    @cached_property
    def id(self) -> str:
        return _hash(self)

    @cached_property
    def everybody(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.members, *self.voters)))

    @property
    def samples(self) -> int:
        """That were counted since the convoy began: what was leased, and is neither held nor given back."""
        open_ = [*self.returned, *(one for _, held in self.leases for one in held)]
        return self.cursor - sum(stop - start for start, stop in open_)

    def lease_of(self, member: str) -> tuple[Range, ...]:
        for name, ranges in self.leases:
            if name == member:
                return ranges
        return ()

    @classmethod
    def unknown(cls, contacts: tuple[str, ...]) -> Decision:
        """What a newcomer knows: whom to ask."""
        return cls(-2, "", (), (), (), (), contacts, (), 0)

    @classmethod
    def first(cls, members: tuple[str, ...], voters: tuple[str, ...], lease: int) -> Decision:
        """Two rounds' work for everybody, round by round.

        >>> Decision.first(("a", "b"), ("a", "b"), 10).leases
        (('a', ((0, 10), (20, 30))), ('b', ((10, 20), (30, 40))))
        """
        count = len(members)
        starts = {name: (n * lease, (count + n) * lease) for n, name in enumerate(members)}
        leases = tuple((name, tuple((start, start + lease) for start in starts[name])) for name in members)
        return cls(0, "", (), (), (), members, voters, leases, 2 * count * lease)


@dataclass(frozen=True)
class Vote:
    """What a voter has accepted, and in which ballot."""

    ballot: int
    decision: Decision


# Ballots are numbered from 0 within a round; ballot b is the voter's at place (round + b) of the roster, so that no two
# propose in the same one.


@dataclass(frozen=True)
class Offer:
    round: int
    update: Update


@dataclass(frozen=True)
class Select:
    """Whose updates are to be added up, and who does it."""

    round: int
    ballot: int
    updates: tuple[Update, ...]
    owners: tuple[str, ...]

    def owner(self, part: int) -> str:
        return self.owners[part % len(self.owners)]


@dataclass(frozen=True)
class Piece:
    """A part of a member's update, with its bytes, to the part's owner."""

    round: int
    ballot: int
    member: str
    part: int
    hash: str


@dataclass(frozen=True)
class Want:
    """An owner lacks these parts of the update that this is sent to."""

    round: int
    ballot: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Reduced:
    """To the proposer: a part's sum is there."""

    round: int
    ballot: int
    part: int
    hash: str


@dataclass(frozen=True)
class Result:
    """A part's encoded sum, with its bytes; whose part it is, decisions tell."""

    round: int
    hash: str


@dataclass(frozen=True)
class Prepare:
    round: int
    ballot: int


@dataclass(frozen=True)
class Promise:
    round: int
    ballot: int
    vote: Vote | None


@dataclass(frozen=True)
class Refused:
    """To a proposer: this voter has promised itself to a later ballot."""

    round: int
    ballot: int  # the later one


@dataclass(frozen=True)
class Propose:
    round: int
    ballot: int
    decision: Decision


@dataclass(frozen=True)
class Accepted:
    round: int
    ballot: int


@dataclass(frozen=True)
class Decided:
    decision: Decision

    @property
    def round(self) -> int:
        return self.decision.round


@dataclass(frozen=True)
class Ask:
    """Somebody stands at this round, and lacks these results of the next."""

    round: int
    wants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Join:
    """A newcomer asks to be a member; `stands` when it has the state that it was missing."""

    round: int
    stands: bool


@dataclass(frozen=True)
class Leave:
    round: int


@dataclass(frozen=True)
class StateAsk:
    """Who needs the agreed state, and is fetching that of this round if it can be had."""

    round: int


@dataclass(frozen=True)
class State:
    """The state behind a decision can be fetched here, in pieces of these hashes."""

    decision: Decision
    chunks: tuple[str, ...]


Message = (
    Offer
    | Select
    | Piece
    | Want
    | Reduced
    | Result
    | Prepare
    | Promise
    | Refused
    | Propose
    | Accepted
    | Decided
    | Ask
    | Join
    | Leave
    | StateAsk
    | State
)


def _hash(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()

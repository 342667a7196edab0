"""What one island knows of the round that it is in; what happens to it, and what it does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from konvoi.plan.sync.messages import Decision, Message, Propose, Select, Update, Vote


@dataclass(frozen=True)
class Rules:
    """What a convoy has agreed to, the same for all. Seconds are of the island's own clock, of which only differences
    are looked at."""

    every: int = 100  # steps from a decision's application to the next snapshot
    num_parts: int = 1  # into which updates are cut
    lease: int = 100  # samples of a round, where nothing is known of a member yet
    quorum: float = 0.5  # of the members: with fewer updates no round ends, whatever the deadline
    deadline_s: float = 30.0  # from the first offer on; later updates count in the next round
    patience_s: float = 60.0  # without a decision; then another voter proposes
    beat_s: float = 2.0  # between looks at what is missing
    max_ahead: int = 100  # steps behind a snapshot without a decision; then the island waits
    evict_after: int = 3  # rounds in which nothing was heard of a member
    kept: int = 8  # decisions whose results are kept for those who are behind
    servers: tuple[str, ...] = ()  # who votes and adds up, where that is not the members' own work
    witness: str = ""  # votes, and has neither model nor data


# -- what happens ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The first event of a process; `fresh` where it has the anchor of `State.last`."""

    stands: bool


@dataclass(frozen=True)
class Stepped:
    step: int


@dataclass(frozen=True)
class Snapshotted:
    """The update of the round is encoded, and may be sent."""

    round: int
    samples: int  # read since the last update that was counted
    weight: float
    parts: tuple[str, ...]
    anchor: str = ""  # hash of the state that it moved from


@dataclass(frozen=True)
class Summed:
    """A `Reduce` is done."""

    round: int
    ballot: int
    part: int
    hash: str


@dataclass(frozen=True)
class Fetched:
    """The state behind a decision is here, checked against its hashes."""

    decision: Decision


@dataclass(frozen=True)
class Timer:
    name: str  # "deadline", "patience" or "beat"
    round: int


@dataclass(frozen=True)
class Received:
    """`sender` is authenticated by the wire."""

    sender: str
    message: Message


@dataclass(frozen=True)
class Leaving:
    """A person, or the machine's shutdown, wants this island to leave."""


Event = Started | Stepped | Snapshotted | Summed | Fetched | Timer | Received | Leaving


# -- what is done ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Persist:
    """To be on disk, with the results that it names, before any later action of the same turn."""

    durable: Durable


@dataclass(frozen=True)
class Send:
    to: str
    message: Message


@dataclass(frozen=True)
class SetTimer:
    """Replaces the one of the same name."""

    name: str
    round: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """Take the move since the anchor, and encode it."""

    round: int


@dataclass(frozen=True)
class Reduce:
    """Add up this part of these updates, in this order, and encode the sum once."""

    round: int
    ballot: int
    part: int
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Apply:
    """The next anchor. `own` is this round's update, `counted` the one of this island's that went in.

    Where they are the same, what the encoding has left over is kept. Where none was counted, the move stays in the
    island's parameters, and goes into the next update. Where it was another, from before a crash, the move is dropped:
    its samples are in.
    """

    decision: Decision
    own: Update | None
    counted: Update | None


@dataclass(frozen=True)
class Fetch:
    """Get the state behind the newest decision from those who have it. One that goes on already stays."""

    peers: tuple[str, ...]


@dataclass(frozen=True)
class Hold:
    """Take no further step until something is applied."""


@dataclass(frozen=True)
class Out:
    """This island is no member any more."""


Action = Persist | Send | SetTimer | Snapshot | Reduce | Apply | Fetch | Hold | Out


# -- what is known ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Durable:
    """What survives the process, with the sums that the two decisions name."""

    last: Decision
    promised: int
    vote: Vote | None


@dataclass
class State:
    """Handed from event to event, and copied before it is changed; what it holds is never changed."""

    me: str
    rules: Rules
    last: Decision  # the newest that is applied here
    promised: int = -1  # no ballot below this is voted in
    vote: Vote | None = None
    stands: bool = True  # whether the model here is that of `last`
    leaving: bool = False
    is_out: bool = False

    # As a member.
    step: int = 0
    began: int = 0  # the step at which `last` was applied
    snapped: int | None = None  # the step of this round's snapshot
    own: Update | None = None
    select: Select | None = None  # the newest of this round
    pending: Propose | None = None  # to be voted for when its results are here
    decided: Decision | None = None  # to be applied when its results are here
    held: frozenset[str] = frozenset()  # results
    kept: tuple[Decision, ...] = ()  # whose results are held
    beats: int = 0

    # As an owner.
    pieces: Mapping[tuple[int, str, int], str] = field(default_factory=dict)  # by ballot, member and part
    reducing: frozenset[int] = frozenset()
    sums: Mapping[int, str] = field(default_factory=dict)  # of `select`

    # As a proposer.
    ballot: int = -1  # that runs here
    seen: int = -1  # the latest that others were heard to have promised
    phase: str = ""  # "prepare", "select", "reduce", "propose"
    offers: Mapping[str, Update] = field(default_factory=dict)
    is_timed: bool = False  # the deadline is set
    is_late: bool = False  # and over
    chosen: Select | None = None  # of `ballot`
    promises: Mapping[str, Vote | None] = field(default_factory=dict)
    reduced: Mapping[int, str] = field(default_factory=dict)
    proposal: Decision | None = None
    accepted: frozenset[str] = frozenset()

    # As a voter, of the others.
    heard: Mapping[str, int] = field(default_factory=dict)  # the round in which each was heard of last
    standing: frozenset[str] = frozenset()  # newcomers that have said that they stand
    joining: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()

    def __copy__(self) -> State:
        new = object.__new__(State)  # a third of copy.copy's time
        new.__dict__.update(self.__dict__)
        return new

    @property
    def round(self) -> int:
        """The one that is to be decided."""
        return self.last.round + 1

    @property
    def is_voter(self) -> bool:
        return self.me in self.last.voters

    @property
    def is_member(self) -> bool:
        return self.me in self.last.members

    @property
    def can_be_member(self) -> bool:
        return self.me not in self.rules.servers and self.me != self.rules.witness

    @property
    def keeps_results(self) -> bool:
        """Whether this island can go on to a decision only with its sums: it has a model, or is the others' log."""
        return self.me != self.rules.witness and (self.stands or not self.can_be_member)

    @property
    def everybody(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.last.members, *self.last.voters)))

    @property
    def own_parts(self) -> list[int]:
        """The parts that this island adds up."""
        select = self.select
        if select is None or not select.updates or self.me not in select.owners:
            return []
        return [part for part in range(self.rules.num_parts) if select.owner(part) == self.me]

    def durable(self) -> Durable:
        return Durable(self.last, self.promised, self.vote)


BLANK: Mapping[str, Any] = {
    "promised": -1,
    "vote": None,
    "snapped": None,
    "own": None,
    "select": None,
    "pending": None,
    "decided": None,
    "pieces": {},
    "reducing": frozenset(),
    "sums": {},
    "ballot": -1,
    "seen": -1,
    "phase": "",
    "offers": {},
    "is_timed": False,
    "is_late": False,
    "chosen": None,
    "promises": {},
    "reduced": {},
    "proposal": None,
    "accepted": frozenset(),
}
"""What a round begins with."""

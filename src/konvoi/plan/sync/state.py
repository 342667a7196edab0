"""What one island knows of the round that it is in."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from konvoi.plan.sync.messages import Decision, Propose, Select, Update, Vote

T = TypeVar("T")


def copied(state: T) -> T:
    new = object.__new__(type(state))  # an eighth of copy.copy's time, or less
    new.__dict__.update(state.__dict__)
    return new


@dataclass(frozen=True)
class Rules:
    """What a convoy has agreed to, the same for all. Seconds are of the island's own clock, of which only differences
    are looked at."""

    every: int = 100  # steps from one snapshot to the next
    by_time: bool = False  # when the first island has taken these, the others send what they have
    num_parts: int = 1  # into which updates are cut
    fragments: int = 1  # of the model, which agree in turn
    lease: int = 100  # samples of a round, where nothing is known of a member yet
    quorum: float = 0.5  # of the members: with fewer updates no round ends, whatever the deadline
    deadline_s: float = 30.0  # from the first offer on; later updates count in the next round
    patience_s: float = 60.0  # without a decision; then another voter proposes
    beat_s: float = 2.0  # between looks at what is missing
    at_once: int = 0  # updates that a round adds up, at most; the stalest of those there first; 0: all
    max_staleness: int = 0  # members whose work is as stale as this are waited for; 0: none
    max_comm_fraction: float = 0.0  # of a round, for an exchange: rounds get as long as that wants; 0: `every`
    rungs: tuple[float, ...] = ()  # bytes of a value, of the codecs that may be taken for it
    max_ahead: int = 100  # steps behind a snapshot without a decision; then the island waits
    evict_after: int = 3  # rounds in which nothing was heard of a member
    kept: int = 8  # decisions whose results are kept for those who are behind
    servers: tuple[str, ...] = ()  # who votes and adds up, where that is not the members' own work
    witness: str = ""  # votes, and has neither model nor data
    deciders: tuple[str, ...] = ()  # the members that vote; none: all do

    def samples_of(self, steps: int) -> int:
        """That a member reads in so many steps."""
        return -(-self.lease * steps // self.every)


# -- what is known ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Durable:
    """What survives the process, with the sums that the two decisions name."""

    last: Decision
    promised: int
    vote: Vote | None


written = operator.attrgetter(*Durable.__dataclass_fields__)  # the same of a state, to see whether it has changed


@dataclass
class State:
    """Handed from event to event, and copied before it is changed; what it holds is never changed."""

    me: str
    rules: Rules
    last: Decision  # the newest that is applied here
    promised: int = -1  # no ballot below this is voted in
    vote: Vote | None = None
    stands: bool = True  # whether the model here is that of `last`
    is_ending: bool = False  # no step follows
    ended: int = 0  # rounds behind the last step; with as many as there are fragments each has agreed on it
    leaving: bool = False
    is_out: bool = False

    # As a member.
    step: int = 0
    since: int = 0  # the decision in which this member's work was counted last, or with which it began
    began: int = 0  # the step of the snapshot that counted last, or at which the agreed state was taken
    sent: int = 0  # the same; but where decisions come late, `began` is later, so that an update has a step of its own
    snapped: int | None = None  # the step of this round's snapshot
    own: Update | None = None
    select: Select | None = None  # the newest of this round
    pending: Propose | None = None  # to be voted for when its results are here
    decided: Decision | None = None  # to be applied when its results are here
    held: frozenset[str] = frozenset()  # results
    kept: tuple[Decision, ...] = ()  # whose results are held
    asked_on: int = 0  # how often this round for a decision that was overtaken
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
    lost: frozenset[str] = frozenset()  # whom the wire has reached, and does not just now
    fetching: frozenset[str] = frozenset()  # members that have said that they do not stand

    @property
    def round(self) -> int:
        """The one that is to be decided."""
        return self.last.round + 1

    @property
    def every(self) -> int:
        """Steps of this round."""
        return self.last.every or self.rules.every

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
        return self.last.everybody

    @property
    def own_parts(self) -> list[int]:
        """The parts that this island adds up."""
        select = self.select
        if select is None or not select.updates or self.me not in select.owners:
            return []
        return [part for part in range(self.rules.num_parts) if select.owner(part) == self.me]

    def durable(self) -> Durable:
        return Durable(*written(self))


BLANK: Mapping[str, Any] = {
    "promised": -1,
    "vote": None,
    "snapped": None,
    "own": None,
    "select": None,
    "pending": None,
    "decided": None,
    "asked_on": 0,
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

"""What happens to an island in a round, and what it does about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.plan.sync.messages import Decision, Message, Update

if TYPE_CHECKING:
    from konvoi.plan.sync.state import Durable

# -- what happens ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The first event of a process; `stands` where it has the anchor of `State.last`."""

    stands: bool


@dataclass(frozen=True)
class Stepped:
    step: int


@dataclass(frozen=True)
class Snapshotted:
    """The update of the round is encoded, and may be sent."""

    round: int
    step: int  # the last that is in it: one may have been under way when the snapshot was asked for
    samples: int  # read since the last update that was counted
    weight: float
    parts: tuple[str, ...]
    anchor: str = ""  # hash of the state that it moved from
    cost: float = 0.0  # of the last exchange, in steps; 0: not known


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
class Ending:
    """No step follows: what was done since the last snapshot is offered now, however few steps it has."""


@dataclass(frozen=True)
class Reform:
    """A person has said that a majority is gone for good: this island goes on alone, and whoever comes, comes anew."""


@dataclass(frozen=True)
class Leaving:
    """A person, or the machine's shutdown, wants this island to leave."""


@dataclass(frozen=True)
class Lost:
    """A hint of the wire: it does not reach this peer just now. Nothing that must hold depends on it."""

    peer: str


@dataclass(frozen=True)
class Found:
    """It does again."""

    peer: str


Event = Started | Stepped | Snapshotted | Summed | Fetched | Timer | Received | Ending | Reform | Leaving | Lost | Found


# -- what is done ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Persist:
    """To be on disk, with the results that it names, before any later action of the same turn."""

    durable: Durable


@dataclass(frozen=True)
class Send:
    to: str
    message: Message


def to_each(peers: Iterable[str], message: Message) -> list[Send]:
    return [Send(peer, message) for peer in peers]


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
    at_beat: bool = False  # and not because something was heard


@dataclass(frozen=True)
class Hold:
    """Take no further step until something is applied."""


@dataclass(frozen=True)
class Out:
    """This island is no member any more."""


Action = Persist | Send | SetTimer | Snapshot | Reduce | Apply | Fetch | Hold | Out

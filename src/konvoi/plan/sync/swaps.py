"""What islands that gossip tell each other; what happens to one; and what it does about it. All values."""

from __future__ import annotations

from dataclasses import dataclass

Id = tuple[str, int, int]  # of an exchange: who has begun it, in which life, and the how manyeth

# -- what is said ----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Lend:
    """Somebody who is back, or new, wants weights to go on from."""


@dataclass(frozen=True)
class Lent:
    """Weights, and the step behind which they are."""

    step: int
    hash: str


@dataclass(frozen=True)
class Bare:
    """To who wants to be lent weights: this island does so itself."""


@dataclass(frozen=True)
class Last:
    """The weights with which somebody ends: all of them have one mean. "" of who has had none to go on from."""

    hash: str


Message = Swap | Swapped | Busy | Lend | Lent | Bare | Last


# -- what happens ----------------------------------------------------------------------------------------------------


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
    """What was to be fetched for an exchange is gone, or is no such thing."""

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
class Offered:
    """What `Offer` asks for is done."""

    peer: str
    hash: str


@dataclass(frozen=True)
class Adopted:
    """What `Adopt` asks for is done; or, without a step, cannot be."""

    step: int | None


@dataclass(frozen=True)
class Leaving:
    """No exchange is begun any more."""


@dataclass(frozen=True)
class Ended:
    """The last step is taken, nothing is under way, and these are the weights."""

    hash: str


@dataclass(frozen=True)
class Collected:
    """What `Collect` asks for is done."""

    peer: str


Event = (
    Stepped
    | Snapshotted
    | Halved
    | Taken
    | Failed
    | Beat
    | Received
    | Reaches
    | Offered
    | Adopted
    | Leaving
    | Ended
    | Collected
)


# -- what is done ----------------------------------------------------------------------------------------------------


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
    happens once the state's `guest` is another."""

    id: Id
    peer: str
    hash: str


@dataclass(frozen=True)
class Take:
    """Fetch the half, and take it with the other sign, between two steps."""

    id: Id
    peer: str
    hash: str


@dataclass(frozen=True)
class Offer:
    """Make the weights, as they are between two steps, ready for somebody to fetch."""

    peer: str


@dataclass(frozen=True)
class Adopt:
    """Fetch weights, and go on from there, between two steps."""

    peer: str
    hash: str
    step: int


@dataclass(frozen=True)
class Collect:
    """Fetch the weights with which a peer ends."""

    peer: str
    hash: str


Action = Send | Snapshot | Halve | Take | Offer | Adopt | Collect

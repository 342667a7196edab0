"""What happens to the server of a federation, and what it does about it: the values of `served`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Terms:
    """What a run goes by. Seconds are of the server's own clock, of which only differences are looked at."""

    rounds: int
    first: int = 1  # sites that have to be there before it begins
    cohort: int = 0  # of each round, at least `least`; 0: all who are there
    least: int = 1  # updates of a round, and sites of a cohort
    quorum: float = 0.5  # of the cohort: with less no round ends, whatever the deadline
    deadline_s: float = 30.0  # from the first update on; later ones do not count
    patience_s: float = 60.0  # with a cohort that brings no quorum, then another is asked; and with a person at a site
    away_s: float = 30.0  # without a word: not there
    at_once: int = 0  # updates that are a round where nobody waits; 0: all wait
    max_staleness: int = 0  # rounds that an update may be late there; 0: as many as are remembered
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """What a site has learnt, by the hash of its bytes."""

    site: str
    base: str  # hash of the weights that it began with
    hash: str
    weight: float


@dataclass(frozen=True)
class Counted:
    """An update in a decision."""

    update: Update
    staleness: int = 0


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Present:
    """A site has asked what there is to do. `holds`: its update waits there for a person."""

    site: str
    now: float
    holds: bool = False


@dataclass(frozen=True)
class Came:
    """A site's update is here, whole and checked."""

    update: Update
    now: float


@dataclass(frozen=True)
class Gone:
    """A site has left, or was revoked."""

    site: str


@dataclass(frozen=True)
class Looked:
    """Time has passed."""

    now: float


@dataclass(frozen=True)
class Made:
    """What was decided was added up, and the new weights are on disk under this hash."""

    round: int
    result: str
    now: float


Event = Present | Came | Gone | Looked | Made

# -- actions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AddUp:
    """Make the weights behind this round, in this order of updates, put them on disk, and say `Made`."""

    round: int
    base: str
    updates: tuple[Counted, ...]


@dataclass(frozen=True)
class Write:
    """Into the log, at once: the round is decided."""

    round: int
    base: str
    result: str
    updates: tuple[Counted, ...]


@dataclass(frozen=True)
class Asked:
    """A cohort is asked, from now on; an attempt above 0 is because too few had answered, or the server was away."""

    round: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Refuse:
    """An update that is not taken, and why."""

    update: Update
    why: str


@dataclass(frozen=True)
class Over:
    """The last round is decided."""


Action = AddUp | Write | Asked | Refuse | Over


# -- the log --------------------------------------------------------------------------------------------------------


def plain(value: Write) -> dict[str, Any]:
    """For the log."""
    return dataclasses.asdict(value)


def written(value: Mapping[str, Any]) -> Write:
    """As the log has it. Raises: KeyError, TypeError."""
    updates = tuple(Counted(Update(**one["update"]), one["staleness"]) for one in value["updates"])
    return Write(value["round"], value["base"], value["result"], updates)

"""What every worker of a run is sent, and what it returns. Torch-free: the parent reads and writes these too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konvoi.fleet.simulated import Simulated
from konvoi.job.job import Prepared
from konvoi.plan.convoy import Convoy
from konvoi.plan.island import Island
from konvoi.plan.sync.messages import Decision


@dataclass(frozen=True)
class Federation:
    """Where the members of one meet."""

    desks: tuple[str, ...]  # host:port
    authority: str  # PEM, of who signs members' certificates
    terms: str  # what all have alike
    public: str = ""  # host:port at which others reach this member; "": where the desk sees it


@dataclass(frozen=True)
class Membership:
    """An island's place in the convoy that it begins with."""

    name: str
    plan: Convoy
    first: Decision
    batch: int  # samples of one of its steps
    global_batch: int  # of one step of all that the convoy began with
    num_parts: int  # into which updates are cut
    run: str  # what all islands of the run must say alike
    folder: Path  # of the run's convoy: identities, addresses, and what islands write down
    address: str = "127.0.0.1"  # at which this island listens
    federation: Federation | None = None  # None: all islands are of this computer, and meet in `folder`


@dataclass(frozen=True)
class Population:
    """Clients that are simulated."""

    plan: Convoy
    fleet: Simulated
    indices: tuple[Any, ...]  # of each client's samples, as arrays
    held_out: tuple[Any, ...] = ()  # of those that it keeps for evaluation


@dataclass(frozen=True)
class Task:
    """A prepared job under a plan, and how the run is kept."""

    prepared: Prepared
    plan: Island
    folder: Path  # the run's, absolute
    resume: bool  # go on from the newest checkpoint
    checkpoint_every: int  # steps; 0: only at the end
    keep: int
    profile: bool = False
    derived: tuple[str, ...] = ()  # what the plan decided, for a person
    membership: Membership | None = None
    population: Population | None = None
    restore_from: tuple[int, Path] | None = None  # another run's checkpoint that is gone on from, and its step

    def describe_plan(self) -> dict[str, Any]:
        """The fields of the plan that differ from their defaults."""
        of = self.membership or self.population
        return self.plan.describe() | ({"convoy": of.plan.describe()} if of is not None else {})


@dataclass(frozen=True)
class Outcome:
    """How a run ended on a worker: the same on all."""

    reason: str  # "finished", "stopped", "early stopping"
    step: int

"""What every worker of a run is sent, and what it returns. Torch-free: the parent reads and writes these too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from konvoi.job.job import Prepared
from konvoi.plan.island import Island


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


@dataclass(frozen=True)
class Outcome:
    """How a run ended on a worker: the same on all."""

    reason: str  # "finished", "stopped", "early stopping"
    step: int

"""What a checkpoint says beside its tensors, so that a run goes on as if it had never ended."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from konvoi.job.job import Prepared
from konvoi.learner import Learner
from konvoi.plan.split.parts import Parts

CONSEQUENCES = {
    "seed": "the order of samples and everything random is another one from here",
    "global_batch": "samples are counted in the new size, so that some of this epoch come twice or not at all",
    "samples": "the order of samples is another one from here",
    "steps": "the schedule follows the new length",
}


def order(prepared: Prepared) -> dict[str, Any]:
    """What the sequence of samples, and the schedule, follow from."""
    job = prepared.job
    values = (job.seed, job.global_batch, prepared.num_samples, prepared.num_steps)
    return dict(zip(CONSEQUENCES, values, strict=True))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a person should know where a run goes on in another order or to another length.

    >>> changes({"steps": 10}, {"steps": 20})
    ['steps was 10 and is 20: the schedule follows the new length']
    """
    return [
        f"{name} was {then[name]} and is {now[name]}: {CONSEQUENCES[name]}" for name in now if then[name] != now[name]
    ]


def packed(state: Any) -> str | None:
    """A stream's own state as text: any objects. The run's folder is the user's own, which reading it checks."""
    return None if state is None else base64.b64encode(pickle.dumps(state)).decode()


def unpacked(text: str | None) -> Any:
    return None if text is None else pickle.loads(base64.b64decode(text))


def load(path: Path, learner: Learner, parts: Parts, num_workers: int) -> list[str]:
    """Read a checkpoint; returns the names of what it does not have. Every worker calls it."""
    from konvoi.state import shards  # loads DCP, which only resuming needs at once

    learner.allocate()
    missing = shards.read(path, learner.tensors(), num_workers=num_workers)
    parts.refresh()
    return missing

"""What a recipe, its plan and what it would tell have to be, for sites to take them in a pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import DataError, PlanError
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.presets import parse
from konvoi.sites.protocol import OPEN, TELL
from konvoi.values import Source

if TYPE_CHECKING:
    from konvoi.island import LiveIsland
    from konvoi.job.job import Prepared
    from konvoi.plan.split.parts import Parts


def convoy_of_recipe(text: str, of_recipe: Any) -> Convoy:
    found = parse(text) if text else of_recipe
    found = found.convoy if isinstance(found, Plan) else found
    if not isinstance(found, Convoy) or found.local is None:
        raise PlanError(
            "a pack's plan is of a federation", found=repr(text or of_recipe), hint="--plan '|fedavg,rounds=50'"
        )
    return found


def check_running_statistics(prepared: Prepared, parts: Parts, island: LiveIsland) -> None:
    """Raises: JobError for a model that keeps some."""
    import numpy as np

    from konvoi.population.reading import reader
    from konvoi.population.running_statistics import refuse_running_statistics

    source, job = prepared.splits.train, prepared.job
    if isinstance(source, Source):
        read = reader(source, job.seed, job.collate, island.device, 0)
        refuse_running_statistics(island, parts, read, np.arange(len(source)))


def check_told(tell: Sequence[str], prepared: Prepared, parts: Parts, island: LiveIsland) -> None:
    """Raises: PlanError, DataError for what a site of this recipe could not tell."""
    from konvoi.held_out import held_out
    from konvoi.task import Task

    others = check_kept(tell)
    if "valid" in tell and prepared.splits.valid is None:
        raise DataError(
            "there are no samples kept for evaluation", found="--tell valid", hint="holdout=0.1 on the data"
        )
    if not others:
        return
    quick = dataclasses.replace(prepared, job=dataclasses.replace(prepared.job, validate_batches=1))
    known = {*TELL, *held_out(island, parts, Task(quick, island.plan, Path(), False, 0, 0))}
    if wrong := sorted(others - known):
        raise PlanError(
            "an update tells nothing of that kind", found=", ".join(wrong), expected=", ".join(sorted(known))
        )


def check_kept(tell: Sequence[str]) -> set[str]:
    """Names of what else is measured on samples that are kept for evaluation. Raises: PlanError."""
    others = {*tell} - {*TELL}
    taken = ("samples", "by_site")  # `valid_samples`, and what the server makes of it all
    if wrong := sorted(one for one in others if one in taken or not one.isidentifier()):
        raise PlanError("an update tells nothing of that kind", found=", ".join(wrong), expected=", ".join(TELL))
    if others and "valid" not in tell:
        hint = f"--tell valid,{min(others)}"
        raise PlanError("what is measured is told beside the loss on these samples", found=min(others), hint=hint)
    return others


def check_ranges(ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises: PlanError."""
    for name, (low, high) in ranges.items():
        if name not in OPEN or not low <= high:
            raise PlanError("this is no range of a setting", found=f"{name}={low:g}:{high:g}", expected=", ".join(OPEN))

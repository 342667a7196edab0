"""evaluate: held-out figures of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from konvoi.errors import DataError
from konvoi.state.record import Record

if TYPE_CHECKING:
    from konvoi.island import LiveIsland
    from konvoi.plan.split.parts import Parts
    from konvoi.task import Task


def evaluate(run: str | Path) -> Mapping[str, float]:
    """The objective's figures of a run's newest checkpoint over its held-out data, in this process; or else over what
    its simulated clients have held out.

    `loss` in nats per token or sample; `bits_per_byte` for text; what else the objective measures.
    Raises: StateError for no run or no checkpoint; DataError where nothing was held out.
    """
    import torch

    from konvoi.fleet.worker import Place
    from konvoi.held_out import held_out
    from konvoi.island import LiveIsland
    from konvoi.plan.island import Island
    from konvoi.plan.precision import precision
    from konvoi.plan.split.parts import single
    from konvoi.trained import load_model

    record = Record(Path(run))
    task = record.task()
    population, splits = task.population, task.prepared.splits
    of_clients = splits.valid is None and population is not None and population.fleet.holdout > 0
    if splits.valid is None and not of_clients:
        raise DataError(
            "this run's data has no held-out part",
            found=record.folder,
            hint="holdout=0.1 on the data, or a pair (train, held-out)",
        )
    plan = Island(precision=task.plan.precision)
    island = LiveIsland(Place(0, 1), plan, torch.device("cpu"), None)
    model = load_model(record, precision(plan.precision).parameters)
    parts = single(model, task.prepared.job.objective)
    if not of_clients:
        return held_out(island, parts, task)
    return _over_clients(island, parts, task)


def _over_clients(island: LiveIsland, parts: Parts, task: Task) -> Mapping[str, float]:
    """The mean over all that simulated clients keep for evaluation. Raises: DataError where they have own layers."""
    import numpy as np
    import torch

    from konvoi.population.judging import judge, mean
    from konvoi.population.reading import reader

    job, population = task.prepared.job, task.population
    assert population is not None
    assert population.plan.local is not None
    if personal := population.plan.local.personal:
        hint = "the run's last evaluation has each client's figures with its own layers"
        raise DataError("clients evaluate with layers of their own", found=f"personal={personal}", hint=hint)
    read = reader(task.prepared.splits.train, job.seed, job.collate, torch.device("cpu"), population.fleet.memory)
    return mean([judge(island, parts, job.objective, read, np.concatenate(population.held_out), job.global_batch)])

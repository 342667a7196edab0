"""evaluate: held-out figures of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from konvoi.errors import DataError
from konvoi.state.record import Record


def evaluate(run: str | Path) -> Mapping[str, float]:
    """The objective's figures of a run's newest checkpoint over its held-out data, in this process.

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
    if task.prepared.splits.valid is None:
        raise DataError(
            "this run's data has no held-out part",
            found=record.folder,
            hint="holdout=0.1 on the data, or a pair (train, held-out)",
        )
    plan = Island(precision=task.plan.precision)
    island = LiveIsland(Place(0, 1), plan, torch.device("cpu"), None)
    model = load_model(record, precision(plan.precision).parameters)
    return held_out(island, single(model, task.prepared.job.objective), task)

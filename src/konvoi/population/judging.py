"""What weights come to on the samples that clients keep for evaluation: each client's sums, mean and spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from konvoi.island import LiveIsland
from konvoi.job.data.positions import Ints
from konvoi.job.objectives import measured
from konvoi.plan.split.parts import Parts
from konvoi.population.reading import Read
from konvoi.values import MicroBatch, Objective

Sums = Mapping[str, float]  # over a client's samples: the loss, what else is measured, and the weight they run over


def judge(island: LiveIsland, parts: Parts, objective: Objective, read: Read, samples: Ints, batch: int) -> Sums:
    """Of the weights that the module has now. What is random about a sample is what it was in round 0."""
    batches = (samples[start : start + batch] for start in range(0, len(samples), batch))
    return island.sums(parts, (island.to_device(MicroBatch(read(one, 0))) for one in batches), measured(objective))


def mean(clients: Iterable[Sums]) -> dict[str, float]:
    """Over all samples of all clients.

    >>> mean([{"loss": 6.0, "weight": 3.0}, {"loss": 2.0, "weight": 1.0}])
    {'loss': 2.0}
    """
    rows = [row for row in clients if row["weight"]]
    total = math.fsum(row["weight"] for row in rows)
    names = [name for name in (rows[0] if rows else ("loss",)) if name != "weight"]
    return {name: math.fsum(row[name] for row in rows) / total if total else math.nan for name in names}


def spread(clients: Iterable[Sums]) -> dict[str, dict[str, float]]:
    """Of each figure, over clients that all count alike: the smallest, quantiles between neighbours interpolated, the
    largest, and the standard deviation (of all clients, not of a sample of them; arXiv 1905.10497, section 4.1).

    >>> spread([{"loss": 6.0, "weight": 3.0}, {"loss": 4.0, "weight": 1.0}])["loss"]["median"]
    3.0
    """
    rows = [row for row in clients if row["weight"]]
    found = {}
    for name in [name for name in (rows[0] if rows else ()) if name != "weight"]:
        values = np.array([row[name] / row["weight"] for row in rows])
        quantiles = np.quantile(values, [0.0, 0.1, 0.5, 0.9, 1.0]).tolist()
        found[name] = {
            **dict(zip(("min", "p10", "median", "p90", "max"), quantiles, strict=True)),
            "std": values.std().item(),
        }
    return found

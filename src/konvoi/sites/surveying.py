"""What sites' data are like, before anything is trained: three rounds, each of which says what the next asks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.job.data.figures import Figures, closer, merge
from konvoi.job.data.statistics import Column, Survey, frame, with_edges
from konvoi.plan.convoy import Convoy
from konvoi.plan.local import Local
from konvoi.security.leaving import Frame, Listed
from konvoi.sites.protocol import ALWAYS, HEAD

ROUNDS = 3  # sums; squares around the mean; histograms around that
PLAN = Convoy(rounds=ROUNDS, local=Local(equal=True))


def begin(asked: Survey, bins: int) -> Survey:
    """What the first round asks: of the form of the last, so that all that leaves is of one size."""
    edges = {one.name: (-1.0,) * one.features for one in asked.columns}
    return with_edges(asked, bins, edges, {name: tuple(-one for one in low) for name, low in edges.items()})


def leaves(asked: Survey) -> Listed:
    """The list of a survey."""
    return Listed((*ALWAYS, Frame("update", (*HEAD, *frame(asked).fields), "three times, before training")))


def as_bytes(asked: Survey) -> bytes:
    return json.dumps(dataclasses.asdict(asked), sort_keys=True).encode()


def asked_of(data: bytes) -> Survey:
    """Raises: ValueError, TypeError, KeyError."""
    told = json.loads(data)
    columns = [
        Column(**{**one, **{name: tuple(one[name]) for name in ("shift", "low", "high")}}) for one in told["columns"]
    ]
    return Survey(**{**told, "columns": tuple(columns), "skipped": tuple(told["skipped"])})


class Surveyed:
    """The server's side: what is asked, and at last what is known."""

    def __init__(self, data: bytes) -> None:
        self.asked = asked_of(data)
        self.figures: Figures | None = None

    def take(self, answers: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        names = [field.name for field in frame(self.asked).fields]
        self.figures = merge(self.asked, [{name: one[name] for name in names} for one in answers])
        self.asked = closer(self.asked, self.figures, self.asked.bins)

    def as_bytes(self) -> tuple[bytes, bytes]:
        """What is asked next, and what is known by now."""
        assert self.figures is not None
        return as_bytes(self.asked), json.dumps(told(self.figures), indent=1).encode()


def told(figures: Figures) -> dict[str, Any]:
    """For people and other programs. What is no number is null."""
    columns = {name: {key: _plain(value) for key, value in vars(one).items()} for name, one in figures.columns.items()}
    labels = None if figures.labels is None else _plain(figures.labels)
    return {"samples": figures.samples, "labels": labels, "columns": columns, "skipped": [*figures.skipped]}


def _plain(value: NDArray[Any]) -> Any:
    if value.dtype.kind != "f":
        return value.tolist()
    return np.where(np.isfinite(value), value, None).tolist()  # type: ignore[call-overload]

"""What sites' data are like, before anything is trained: three rounds, each of which says what the next asks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
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


def constants_of(path: Path | None, columns: Sequence[str]) -> dict[str, Any]:
    """What a pack says of the columns that its recipe normalises, from a file of what was told, or from its folder.

    Raises: DataError.
    """
    if path is None or not columns:
        if path is not None:
            hint = "kv.data.normalize(kv.data.slot(...))"
            raise DataError("nothing in this recipe is normalised by statistics", found=path, hint=hint)
        return {}
    path = path / "statistics.json" if path.is_dir() else path
    try:
        told = json.loads(path.read_text())
        known = {name: {key: told["columns"][name][key] for key in ("mean", "std")} for name in columns}
        samples, survey = int(told["samples"]), str(told.get("survey", ""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"statistics.json of a survey, with {', '.join(columns)}"
        raise DataError("these are no statistics", found=f"{path}: {error!r}", expected=expected) from None
    return {"columns": known, "samples": samples, "survey": survey}


def _plain(value: NDArray[Any]) -> Any:
    if value.dtype.kind != "f":
        return value.tolist()
    return np.where(np.isfinite(value), value, None).tolist()  # type: ignore[call-overload]

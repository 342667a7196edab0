"""What members' sums say of all their data, and how samples are normalised by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
from konvoi.job.data.positions import Ints
from konvoi.job.data.statistics import LABELS, Column, Sums, Survey, frame, sums, survey, with_edges
from konvoi.values import Splits

SMALLEST = 1e-12  # of a mean's size: a standard deviation below is that of a constant, rounded
REACH = 4.0  # standard deviations that a histogram goes to either side, where nobody has said


@dataclass(frozen=True, eq=False)
class Described:
    """A column. Arrays have a number for each feature; `std` is of the population. It is NaN, as `mean` is, where there
    is no number, and 0 for a constant. `histogram` is (features, bins), with `edges` (features, bins + 1); `below` and
    `above` lie outside of it."""

    count: NDArray[np.uint64]
    missing: NDArray[np.uint64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    edges: NDArray[np.float64]
    histogram: NDArray[np.uint64]
    below: NDArray[np.uint64]
    above: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Normalize:
    """A sample whose column is less its mean, over its standard deviation; a constant is only moved to 0. Made by
    `Figures.normalize`, for `kv.data.map`. float32; what is missing stays NaN."""

    column: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, column: str, mean: NDArray[Any], std: NDArray[Any]) -> Normalize:
        """Raises: DataError where there are no numbers."""
        mean, std = (np.asarray(one, np.float64).reshape(-1) for one in (mean, std))
        if len(mean) != len(std) or not (std >= 0).all() or not np.isfinite([mean, std]).all():
            found = f"{column}, {int((~np.isfinite(mean)).sum())} of them"
            raise DataError("some feature has no number at all", found=found)
        return cls(column, tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))

    def __call__(self, sample: Mapping[str, Any], rng: Any = None) -> dict[str, Any]:
        return {**sample, self.column: self._of(np.asarray(sample[self.column]), 0)}

    def of_stack(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same of samples that are stacked along dim 0."""
        return {**batch, self.column: self._of(np.asarray(batch[self.column]), 1)}

    def _of(self, values: NDArray[Any], dim: int) -> NDArray[np.float32]:
        """`dim`: that of the features."""
        shape = (-1,) + (1,) * (values.ndim - dim - 1) if values.ndim > dim else ()
        mean, std = (np.reshape(one, shape) for one in (self.mean, self.std))
        found: NDArray[np.float32] = ((values - mean) / std).astype(np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Figures:
    """Of a federation, or of one member. `labels`: samples of each class; None where they were not asked for.
    `members`: the same of each, where that was asked for."""

    samples: int
    columns: Mapping[str, Described]
    labels: NDArray[np.uint64] | None
    skipped: tuple[str, ...] = ()
    members: tuple[Figures, ...] = field(default=(), repr=False)

    @property
    def balance(self) -> NDArray[np.float64] | None:
        """Each class's share of the samples."""
        return None if self.labels is None else self.labels / max(1, int(self.labels.sum()))

    def normalize(self, column: str = "inputs") -> Normalize:
        """For `kv.data.map(data, figures.normalize())`. Raises: DataError where there are no numbers."""
        if column not in self.columns:
            raise DataError("nothing is known of this column", found=column, expected=", ".join(self.columns))
        return Normalize.of(column, self.columns[column].mean, self.columns[column].std)

    def as_rows(self) -> list[Sequence[str]]:
        """A row for each feature and each class, for a person."""
        rows: list[Sequence[str]] = [("what", "numbers", "missing", "mean", "std")]
        for name, one in self.columns.items():
            for feature in range(len(one.mean)):
                label = f"{name}[{feature}]" if len(one.mean) > 1 else name
                counts = f"{one.count[feature]:,}", f"{one.missing[feature]:,}"
                rows.append((label, *counts, f"{one.mean[feature]:.6g}", f"{one.std[feature]:.6g}"))
        if self.labels is not None and self.balance is not None:
            for number, (count, share) in enumerate(zip(self.labels, self.balance, strict=True)):
                rows.append((f"class {number}", f"{count:,}", "", f"{share:.1%}", ""))
        return rows


def merge(asked: Survey, members: Sequence[Sums], *, each: bool = False) -> Figures:
    """Of all members together. `each`: also of every one, in their order.

    Raises: DataError where nobody has answered, or an answer is not of the form that was asked for.

    >>> from konvoi.job.data.statistics import sums
    >>> from konvoi.job.data.tensors import Arrays
    >>> asked = Survey((Column("inputs", 1, (0.0,)),))
    >>> parts = [sums(Arrays({"inputs": np.array(one)}), asked) for one in ([1.0, 2.0], [6.0])]
    >>> merge(asked, parts).columns["inputs"].mean
    array([3.])
    """
    if not members:
        raise DataError("nobody has told anything", found="0 members")
    names = {one.name: one.shape for one in frame(asked).fields}
    for found in members:
        shapes = {name: np.shape(value) for name, value in found.items()}
        if shapes != names:
            raise DataError("an answer is not of the form that was asked for", found=shapes, expected=names)
    total = {name: np.sum([one[name] for one in members], axis=0) for name in names}
    own = tuple(_figures(asked, one, ()) for one in members) if each else ()
    return _figures(asked, total, own)


def describe(
    splits: Splits,
    members: Sequence[Ints | None] = (None,),
    *,
    bins: int = 0,
    span: tuple[float, float] | None = None,
    num_classes: int | None = None,
    each: bool = False,
    columns: Sequence[str] | None = None,
) -> Figures:
    """Of the training data of members who have these rows of it (None: all), asked one question after the other: for
    sums, for squares around the mean, and, where `bins` is not 0, for histograms. `columns`: of these, and no labels.

    Raises: DataError.
    """
    asked = survey(splits, num_classes)
    if columns is not None:
        asked = replace(asked, columns=tuple(one for one in asked.columns if one.name in columns), num_classes=0)
    nearer = [(0, None)] if span is None or not bins else []
    for number, over in (*nearer, *([(bins, span)] if bins else [])):
        asked = closer(asked, merge(asked, [sums(splits.train, asked, rows) for rows in members]), number, over)
    return merge(asked, [sums(splits.train, asked, rows) for rows in members], each=each)


def closer(asked: Survey, found: Figures, bins: int = 0, span: tuple[float, float] | None = None) -> Survey:
    """What is asked next, when means are known: values less their mean; and, when deviations are, histograms around it,
    or over `span`."""
    low, high, columns = dict[str, Sequence[float]](), dict[str, Sequence[float]](), []
    for one in asked.columns:
        told = found.columns[one.name]
        mean = np.where(told.count > 0, told.mean, 0.0)
        reach = np.where(told.std > 0, REACH * told.std, np.maximum(0.5, np.abs(mean) * 1e-6))
        low[one.name], high[one.name] = (mean - reach).tolist(), (mean + reach).tolist()
        if span is not None:
            low[one.name], high[one.name] = [span[0]] * one.features, [span[1]] * one.features
        columns.append(Column(one.name, one.features, tuple(mean.tolist())))
    nearer = Survey(tuple(columns), 0, asked.num_classes, asked.skipped)
    return with_edges(nearer, bins, low, high) if bins else nearer


def _figures(asked: Survey, found: Sums, members: tuple[Figures, ...]) -> Figures:
    columns = {one.name: _described(one, asked.bins, found) for one in asked.columns}
    labels = found[LABELS] if asked.num_classes else None
    return Figures(int(found["samples"]), columns, labels, asked.skipped, members)


def _described(column: Column, bins: int, found: Sums) -> Described:
    count, missing, total, squares = (
        found[f"{column.name}.{name}"] for name in ("present", "missing", "sum", "squares")
    )
    number = np.where(count > 0, count, np.nan)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - np.square(mean), 0.0))
    mean = np.array(column.shift) + mean
    counted = found.get(f"{column.name}.histogram", np.zeros((column.features, 2), np.uint64))
    low, high = column.low or (np.nan,) * column.features, column.high or (np.nan,) * column.features
    edges = np.stack([np.linspace(a, b, bins + 1) for a, b in zip(low, high, strict=True)])
    return Described(
        count,
        missing,
        mean,
        np.where(std <= SMALLEST * np.abs(mean), 0.0, std),
        edges,
        counted[:, 1:-1],
        counted[:, 0],
        counted[:, -1],
    )

"""What a member tells of its data before training: sums of a size that is agreed, so that the sum over members is the
federation's figure, and nothing of a single sample is in it but its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
from konvoi.job.data.keyed import Key, Keys
from konvoi.job.data.positions import Ints
from konvoi.job.data.reading import read_samples, read_stacked
from konvoi.security.leaving import Field, Frame
from konvoi.values import Source, Splits

Array: TypeAlias = NDArray[Any]
Sums: TypeAlias = dict[str, Array]
Edges: TypeAlias = Mapping[str, Sequence[float]]  # by column, a number for each feature

KIND = "statistics"  # of the frame
LABELS = "labels"
READ_BYTES = 32 << 20  # of samples at once, in float64


@dataclass(frozen=True)
class Column:
    """What is asked of one column: of each feature of a vector, or of each channel (the first dim) of an image.

    `shift` is taken from each value before it is squared, so that the variance of values far from 0 keeps its digits
    (Chan, Golub and LeVeque, The American Statistician 37(3), 1983, section 2). `low` and `high` are where histograms
    begin and end. All of them have a number for each feature.
    """

    name: str
    features: int
    shift: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What all members are asked, alike: it decides the size of what leaves. `bins` 0: no histograms. `num_classes` 0:
    no labels. `skipped`: what is left out, and why."""

    columns: tuple[Column, ...]
    bins: int = 0
    num_classes: int = 0
    skipped: tuple[str, ...] = ()


def survey(splits: Splits, num_classes: int | None = None) -> Survey:
    """Of data like these; only the form of a sample is looked at. `num_classes`: where the data do not say it.

    >>> from konvoi.job.data.tensors import tensors
    >>> found = survey(tensors(inputs=np.zeros((9, 2)), labels=np.arange(9) % 3).prepare())
    >>> [(one.name, one.features) for one in found.columns], found.num_classes
    ([('inputs', 2)], 3)
    """
    if not isinstance(splits.train, Source):
        raise DataError("a stream has no samples to count", found=type(splits.train).__name__)
    (sample,) = read_samples(splits.train, [Key(seed=0, epoch=0, index=0)])
    if "input_ids" in sample:
        return Survey((), skipped=("input_ids and labels: the samples are tokens, of which only samples are counted",))
    classes, columns, skipped = num_classes or splits.spec.num_classes or 0, list[Column](), list[str]()
    arrays = {name: np.asarray(value) for name, value in sample.items()}
    why_no_labels = _why_no_labels(arrays.pop(LABELS, None), classes)
    if why_no_labels:
        skipped.append(f"labels: {why_no_labels}")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            skipped.append(f"{name}: no numbers ({array.dtype})")
            continue
        features = array.shape[0] if array.ndim else 1
        columns.append(Column(name, features, (0.0,) * features))
    return Survey(tuple(columns), 0, 0 if why_no_labels else classes, tuple(skipped))


def _why_no_labels(labels: Array | None, classes: int) -> str:
    if labels is None:
        return "the samples have none"
    if labels.ndim or labels.dtype.kind not in "biu":
        return f"not one whole number for each sample ({labels.dtype}, shape {labels.shape})"
    return "" if classes else "the data do not say how many classes there are (num_classes=)"


def with_edges(asked: Survey, bins: int, low: Edges, high: Edges) -> Survey:
    """The same with histograms of so many bins of equal width."""
    columns = []
    for column in asked.columns:
        lows, highs = (tuple(map(float, edge[column.name])) for edge in (low, high))
        if not len(lows) == len(highs) == column.features or not all(a < b for a, b in zip(lows, highs, strict=True)):
            found = f"{column.name}: {len(lows)} from {lows[:3]} to {highs[:3]}"
            raise DataError("a histogram ends above where it begins, for each feature", found=found)
        columns.append(replace(column, low=lows, high=highs))
    return replace(asked, columns=tuple(columns), bins=bins)


def frame(asked: Survey) -> Frame:
    """What would leave a member, for its list of what may.

    >>> asked = Survey((Column("inputs", 2, (0.0, 0.0)),), num_classes=3)
    >>> [(one.name, one.type, one.shape) for one in frame(asked).fields][:3]
    [('samples', 'u8', ()), ('inputs.present', 'u8', (2,)), ('inputs.missing', 'u8', (2,))]
    """
    fields = [Field("samples", "u8", (), "how many there are")]
    for one in asked.columns:
        each, of = (one.features,), f"of each of {one.name}'s features"
        fields.append(Field(f"{one.name}.present", "u8", each, f"numbers {of}"))
        fields.append(Field(f"{one.name}.missing", "u8", each, f"values {of} that are no numbers"))
        fields.append(Field(f"{one.name}.sum", "f8", each, f"sum {of}, less what is agreed"))
        fields.append(Field(f"{one.name}.squares", "f8", each, "the same of its squares"))
        if asked.bins:
            shape, about = (one.features, asked.bins + 2), f"how many {of} lie below, in each bin, and above"
            fields.append(Field(f"{one.name}.histogram", "u8", shape, about))
    if asked.num_classes:
        fields.append(Field(LABELS, "u8", (asked.num_classes,), "samples of each class"))
    return Frame(KIND, tuple(fields), rate="up to three times, before training")


def sums(source: Source, asked: Survey, rows: Ints | None = None) -> Sums:
    """One member's answer, in the fields of `frame`. `rows`: which samples are its own; None: all.

    Values are as training gets them in its first epoch. NaN and infinite ones count as missing.
    Raises: DataError for samples that are not as asked.

    >>> from konvoi.job.data.tensors import Arrays
    >>> asked = Survey((Column("inputs", 1, (2.0,)),))
    >>> sums(Arrays({"inputs": np.array([1.0, 4.0, np.nan])}), asked)["inputs.squares"]
    array([5.])
    """
    kinds = {"u8": np.uint64, "f8": np.float64}
    total = {one.name: np.zeros(one.shape, kinds[one.type]) for one in frame(asked).fields}
    mine = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)
    total["samples"] += np.uint64(len(mine))
    if not asked.columns and not asked.num_classes:
        return total
    for block in _blocks(source, mine):
        for column in asked.columns:
            for name, found in _describe(_by_feature(block, column), column, asked.bins).items():
                total[f"{column.name}.{name}"] += found
        if asked.num_classes:
            total[LABELS] += _count(np.asarray(block[LABELS]), asked.num_classes)
    return total


def _blocks(source: Source, rows: Ints) -> Iterator[Mapping[str, Array]]:
    """Some samples at a time, stacked; as many as go into `READ_BYTES` when the first is known."""
    start, size = 0, 1
    while start < len(rows):
        these = rows[start : start + size]
        batch = read_stacked(source, Keys(0, np.zeros_like(these), these))
        if not isinstance(batch, Mapping):
            batch = {name: _stacked(name, [np.asarray(one[name]) for one in batch]) for name in batch[0]}
        yield batch
        start += len(these)
        size = max(1, READ_BYTES * len(these) // (8 * max(1, sum(np.size(one) for one in batch.values()))))


def _stacked(name: str, arrays: Sequence[Array]) -> Array:
    if len(shapes := {one.shape for one in arrays}) > 1:
        raise DataError(f"samples differ in the shape of {name}", found=sorted(shapes)[:3], hint="kv.data.map")
    return np.stack(arrays)


def _by_feature(block: Mapping[str, Array], column: Column) -> NDArray[np.float64]:
    """(features, numbers). Raises: DataError."""
    if column.name not in block:
        raise DataError("the samples lack a column that is asked for", found=", ".join(block), expected=column.name)
    array = np.asarray(block[column.name])
    array = array[:, None] if array.ndim == 1 else array
    if array.shape[1] != column.features or array.dtype.kind not in "biuf":
        found = f"{array.dtype}, {array.shape[1:]}"
        raise DataError(f"{column.name} is of another form than is asked for", found=found, expected=column.features)
    return np.moveaxis(array, 1, 0).reshape(column.features, -1).astype(np.float64)


def _describe(values: NDArray[np.float64], column: Column, bins: int) -> Sums:
    good = np.isfinite(values)
    moved = np.where(good, values - np.array(column.shift)[:, None], 0.0)
    counts = good.sum(1)
    found: Sums = {
        "present": counts.astype(np.uint64),
        "missing": (values.shape[1] - counts).astype(np.uint64),
        "sum": moved.sum(1),
        "squares": np.square(moved).sum(1),
    }
    if bins:
        each = zip(values, good, column.low, column.high, strict=True)
        found["histogram"] = np.stack([_histogram(row[here], low, high, bins) for row, here, low, high in each])
    return found


def _histogram(values: Array, low: float, high: float, bins: int) -> NDArray[np.uint64]:
    """numpy's own, whose last bin holds `high`, and what lies outside at its ends."""
    inside = np.histogram(values, bins, (low, high))[0]
    return np.concatenate([[(values < low).sum()], inside, [(values > high).sum()]]).astype(np.uint64)


def _count(labels: Array, num_classes: int) -> NDArray[np.uint64]:
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        found = f"{labels.min()} to {labels.max()}"
        raise DataError("there are classes that are not agreed", found=found, expected=f"0 to {num_classes - 1}")
    return np.bincount(labels.astype(np.int64), minlength=num_classes).astype(np.uint64)

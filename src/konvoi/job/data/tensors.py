"""`data.tensors`: samples that are already in memory, as numpy arrays or torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
from konvoi.job.data.positions import Ints, Order
from konvoi.values import DataSpec, Splits

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Arrays:
    """A source over equally long arrays; they travel to the workers inside the job."""

    columns: Mapping[str, Array]
    deterministic: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Array]:
        return {name: np.array(column[index]) for name, column in self.columns.items()}

    def __getitems__(self, indices: Ints) -> dict[str, Array]:
        return {name: column[indices] for name, column in self.columns.items()}


@dataclass(frozen=True, eq=False)
class Tensors:
    """Inputs with labels (classes) or targets (numbers)."""

    inputs: Any
    labels: Any = None
    targets: Any = None
    holdout: float = 0.1

    def prepare(self) -> Splits:
        columns = {"inputs": inputs_of(self.inputs)}
        if self.labels is not None:
            columns["labels"] = labels_of(self.labels)
        else:
            columns["targets"] = _targets(self.targets)
        train_rows, valid_rows = held_out(_one_length(columns), self.holdout)
        spec = DataSpec(
            input_shape=tuple(columns["inputs"].shape[1:]),
            num_classes=int(columns["labels"].max()) + 1 if "labels" in columns else None,
            num_targets=columns["targets"].shape[1] if "targets" in columns else None,
        )
        description = {"source": "tensors", "train_samples": len(train_rows), "valid_samples": len(valid_rows)}
        valid = Arrays({name: column[valid_rows] for name, column in columns.items()}) if len(valid_rows) else None
        return Splits(Arrays({name: column[train_rows] for name, column in columns.items()}), valid, spec, description)


def tensors(*, inputs: Any, labels: Any = None, targets: Any = None, holdout: float = 0.1) -> Tensors:
    """Samples along dim 0. `labels` are classes from 0; `targets` are numbers, (samples,) or (samples, width).

    A random share `holdout` of the samples, the same every time, is kept for validation.
    Raises: DataError, now or in `prepare`, where lengths differ or values cannot be used.

    >>> splits = tensors(inputs=np.zeros((10, 3)), labels=np.arange(10) % 2, holdout=0.2).prepare()
    >>> len(splits.train), len(splits.valid), splits.spec.num_classes
    (8, 2, 2)
    """
    if (labels is None) == (targets is None):
        raise DataError(
            "tensors needs either labels or targets",
            found="neither" if labels is None else "both",
            expected="labels= for classes, or targets= for numbers",
        )
    check_holdout(holdout)
    return Tensors(inputs, labels, targets, holdout)


def check_holdout(holdout: float) -> None:
    """Raises: DataError where it is no share of the data."""
    if not 0 <= holdout < 1:
        raise DataError("holdout is a share of the data", found=holdout, expected="0 <= holdout < 1")


def held_out(length: int, holdout: float) -> tuple[Ints, Ints]:
    """Rows for training and rows for validation, each in ascending order; the same for the same length."""
    num_valid = min(length - 1, max(1, round(length * holdout))) if holdout else 0
    rows = Order(seed=0, length=length).indices(0, length)[1]
    return np.sort(rows[num_valid:]), np.sort(rows[:num_valid])


def inputs_of(values: Any) -> Array:
    """float32, at least (samples,)."""
    array = _array("inputs", values)
    if array.ndim == 0:
        raise DataError("inputs need a first dim that counts the samples", found="a single number")
    return _finite("inputs", array.astype(np.float32))


def labels_of(values: Any) -> Array:
    """int64 (samples,), counted from 0; (samples, 1) is taken too."""
    array = _array("labels", values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError("one label per sample is needed", found=f"shape {array.shape}", expected="(samples,)")
    whole = array.astype(np.int64)
    if len(whole) and ((whole != array).any() or whole.min() < 0):
        wrong = array[(whole != array) | (whole < 0)][0]
        raise DataError(
            "labels are classes, counted from 0", found=wrong, expected="0, 1, 2, ...", hint="targets= takes numbers"
        )
    return whole


def _targets(values: Any) -> Array:
    array = _array("targets", values).astype(np.float32)
    return _finite("targets", array[:, None] if array.ndim == 1 else array)


def _array(name: str, values: Any) -> Array:
    array = np.asarray(values)  # torch tensors say themselves how
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} must be numbers", found=f"{type(values).__name__} of {array.dtype}", expected="one array"
        )
    return array


def _finite(name: str, array: Array) -> Array:
    num_bad = int((~np.isfinite(array)).sum())
    if num_bad:
        raise DataError(f"{name} hold values that are no numbers", found=f"{num_bad} of {array.size}", expected="none")
    return array


def _one_length(columns: Mapping[str, Array]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError("the arrays have different lengths", found=lengths, expected="one length")
    length = next(iter(lengths.values()))
    if length == 0:
        raise DataError("the data set is empty", found="0 samples", expected="at least one")
    return length

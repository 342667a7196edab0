"""`data.of`: data sets that somebody already has, as Data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from konvoi.errors import DataError
from konvoi.job.data.hub import hub, is_hub_data
from konvoi.job.data.keyed import Key
from konvoi.job.data.reading import read_samples
from konvoi.job.data.stream import Stream
from konvoi.values import Data, DataSpec, Source, Splits

ACCEPTED = (
    "konvoi.data, a map-style data set (len and []), an iterable one, or a pair (train, valid); "
    "a sample is a dict, or (inputs, labels or targets)"
)


@dataclass(frozen=True)
class Named:
    """Samples that are tuples, as dicts with `names` for keys."""

    inner: Source
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([Key(seed=0, epoch=0, index=index)])[0]

    def read(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        return [as_dict(sample, self.names) for sample in read_samples(self.inner, keys)]


@dataclass(frozen=True, eq=False)
class Wrapped:
    """Somebody's data sets."""

    train: Any
    valid: Any = None
    virtual_shards: int = 64

    def prepare(self) -> Splits:
        """Raises: DataError where a data set is empty, or its samples cannot be used."""
        valid = None if self.valid is None else _source(self.valid)[0]
        name = f"{type(self.train).__module__}.{type(self.train).__qualname__}"
        if is_stream(self.train):
            return Splits(Stream(self.train, self.virtual_shards, (to_dict,)), valid, DataSpec(), {"source": name})
        train, first = _source(self.train)
        counts = {"train_samples": len(train), "valid_samples": 0 if valid is None else len(valid)}
        return Splits(train, valid, _spec(first), {"source": name, **counts})


def of(data: object, *, virtual_shards: int = 64) -> Data:
    """Anything that holds samples, as Data: see `ACCEPTED`. An iterable is cut into about `virtual_shards`.

    Raises: DataError that says what is accepted.

    >>> splits = of(([(0.5, 1), (0.25, 0), (1.0, 1)], [(0.1, 0)])).prepare()
    >>> len(splits.train), splits.valid[0]["labels"]
    (3, array(0))
    """
    if isinstance(data, Data):
        return data
    if is_hub_data(data):
        return hub(data)
    if virtual_shards < 1:
        raise DataError("virtual_shards counts shards", found=virtual_shards, expected="at least 1")
    if isinstance(data, tuple):
        if len(data) != 2 or not all(_is_data(part) for part in data) or is_stream(data[1]):
            hint = "konvoi.data.tensors(inputs=, labels=) takes arrays; validation data needs a length"
            raise DataError("this tuple is no data", found=_kinds(data), expected="(train, valid)", hint=hint)
        return Wrapped(*data, virtual_shards=virtual_shards)
    if not _is_data(data):
        raise DataError("this is no data", found=type(data).__name__, expected=ACCEPTED, hint=_hint(data))
    return Wrapped(data, virtual_shards=virtual_shards)


def is_stream(data: object) -> bool:
    """Whether it is read by iterating. torch's IterableDataset inherits a [] that only raises."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data and isinstance(data, torch_data.IterableDataset):
        return True
    return isinstance(data, Iterable) and not isinstance(data, Source)


def to_dict(sample: Any, rng: np.random.Generator | None = None) -> Any:
    """A sample of a stream: tuples get the keys that they would have in a map-style data set."""
    return as_dict(sample, names_of(sample))


def names_of(sample: Any) -> tuple[str, ...]:
    """The keys for a sample that is no dict. Raises: DataError where it is of another kind.

    >>> names_of((np.zeros(3), 1)), names_of((np.zeros(3), 0.5)), names_of({"inputs": 1})
    (('inputs', 'labels'), ('inputs', 'targets'), ())
    """
    if isinstance(sample, Mapping):
        return ()
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        target = np.asarray(sample[1])
        return ("inputs", "labels" if target.dtype.kind in "biu" and target.ndim == 0 else "targets")
    expected = 'a dict such as {"inputs": array, "labels": 3}, or a pair (inputs, labels or targets)'
    raise DataError(
        "this sample cannot be used", found=_kinds(sample), expected=expected, hint="konvoi.data.map may convert it"
    )


def as_dict(sample: Any, names: Sequence[str]) -> Any:
    """float32 inputs and targets, int64 labels; tensors stay as they are."""
    if not names:
        return sample
    values = dict(zip(names, sample, strict=True))
    return {name: value if _is_tensor(value) else _array(name, value) for name, value in values.items()}


def _array(name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"'{name}' is no array of numbers", found=type(value).__name__, hint="konvoi.data.map may convert it"
        )
    if name == "targets" and array.ndim == 0:
        array = array[None]
    return array.astype(np.int64 if name == "labels" else np.float32)


def _source(data: Any) -> tuple[Source, Any]:
    """The source and its first sample."""
    if not len(data):
        raise DataError(
            "the data set is empty", found=f"{type(data).__name__} of length 0", expected="at least one sample"
        )
    (first,) = read_samples(data, [Key(seed=0, epoch=0, index=0)])
    names = names_of(first)
    return (Named(data, names), as_dict(first, names)) if names else (data, first)


def _spec(sample: Mapping[str, Any]) -> DataSpec:
    """What one sample shows; the number of classes is not among it."""
    shapes = {name: tuple(np.shape(value)) for name, value in sample.items()}
    return DataSpec(
        input_shape=shapes.get("inputs"),
        num_targets=shapes["targets"][0] if len(shapes.get("targets", ())) == 1 else None,
        seq_len=shapes["input_ids"][0] - 1 if len(shapes.get("input_ids", ())) == 1 else None,
    )


def _is_data(data: object) -> bool:
    if isinstance(data, (str, bytes, Path, Mapping)) or _is_tensor(data) or isinstance(data, np.ndarray):
        return False
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data and isinstance(data, torch_data.DataLoader):
        return False
    return isinstance(data, Source) or (isinstance(data, Iterable) and iter(data) is not data)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _hint(data: object) -> str:
    if isinstance(data, (str, Path)):
        return "konvoi.data.text(...) or konvoi.data.images(...) read files"
    if isinstance(data, (Mapping, np.ndarray)) or _is_tensor(data):
        return "konvoi.data.tensors(inputs=, labels=) takes arrays"
    if isinstance(data, Iterable) and not isinstance(data, Source):
        return "a generator ends after one pass, a DataLoader has made batches already: pass the data set behind it"
    return "konvoi.data.tensors, text, images and hub make data"


def _kinds(sample: Any) -> str:
    if isinstance(sample, (tuple, list)):
        return f"{type(sample).__name__} of {', '.join(type(item).__name__ for item in sample)}"
    return type(sample).__name__

"""`data.map`: a function on every sample, with a generator keyed by the sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from konvoi.errors import DataError
from konvoi.job.data.keyed import Key, Transform, global_generators_kept, transformed
from konvoi.job.data.of import of
from konvoi.job.data.reading import read_samples
from konvoi.job.data.stream import Stream
from konvoi.values import Data, DataSpec, Source, Splits


@dataclass(frozen=True)
class Mapped:
    """`inner`'s samples through `fn`; what `fn` draws globally is keyed as well."""

    inner: Source
    fn: Transform

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.read([Key(seed=0, epoch=0, index=index)])[0]

    def read(self, keys: Sequence[Key]) -> list[Any]:
        samples = read_samples(self.inner, [key.below() for key in keys])
        with global_generators_kept():
            return [transformed(sample, self.fn, key) for key, sample in zip(keys, samples, strict=True)]


@dataclass(frozen=True)
class Map:
    """Data whose samples go through `fn(sample, rng)`."""

    data: Data
    fn: Transform
    valid: bool = True
    spec: DataSpec | None = None

    def prepare(self) -> Splits:
        splits = self.data.prepare()
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return replace(
            splits,
            train=_mapped(splits.train, self.fn),
            valid=Mapped(splits.valid, self.fn) if self.valid and splits.valid is not None else splits.valid,
            spec=self.spec or splits.spec,
            description={**splits.description, "maps": [*splits.description.get("maps", ()), name]},
        )


def map(data: object, fn: Transform, *, valid: bool = True, spec: DataSpec | None = None) -> Map:
    """`fn(sample, rng) -> sample` on every sample; `rng` depends on (seed, epoch, index) and on nothing else.

    `valid=False` leaves the held-out part as it is, as augmentation should. `spec` says what the samples are then,
    where `fn` changes it. Raises: DataError where `fn` cannot be called.

    >>> import konvoi as kv
    >>> data = kv.data.tensors(inputs=[[1.0], [2.0]], labels=[0, 1], holdout=0)
    >>> noisy = kv.data.map(data, lambda sample, rng: {**sample, "inputs": sample["inputs"] + rng.normal()})
    """
    if not callable(fn):
        raise DataError("map needs a function", found=type(fn).__name__, expected="fn(sample, rng) -> sample")
    return Map(of(data), fn, valid, spec)


def _mapped(train: Any, fn: Transform) -> Any:
    if isinstance(train, Stream):
        return replace(train, fns=(*train.fns, fn))
    return Mapped(train, fn)

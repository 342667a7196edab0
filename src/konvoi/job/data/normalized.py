"""`data.normalize`: samples less the mean of all training data, wherever these lie, over their deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from konvoi.errors import DataError
from konvoi.job.data.figures import Normalize, describe
from konvoi.job.data.keyed import Key
from konvoi.job.data.mapping import Map
from konvoi.job.data.of import of
from konvoi.job.data.positions import Ints
from konvoi.job.data.reading import BatchedSource, draws_nothing, read_samples
from konvoi.job.data.statistics import survey
from konvoi.job.data.stream import Stream
from konvoi.values import Source, Splits


@dataclass(frozen=True)
class Rescaled:
    """`inner`'s samples, normalised."""

    inner: Source
    by: tuple[Normalize, ...]

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def deterministic(self) -> bool:
        return draws_nothing(self.inner) and isinstance(self.inner, BatchedSource)

    def __getitem__(self, index: int) -> Any:
        return self.read([Key(seed=0, epoch=0, index=index)])[0]

    def read(self, keys: Sequence[Key]) -> list[Any]:
        samples = read_samples(self.inner, keys)
        for one in self.by:
            samples = [one(sample) for sample in samples]
        return samples

    def __getitems__(self, indices: Ints) -> Mapping[str, Any]:
        assert isinstance(self.inner, BatchedSource)
        batch = self.inner.__getitems__(indices)
        for one in self.by:
            batch = one.of_stack(batch)
        return batch


@dataclass(frozen=True)
class Normalized:
    """Data of which some columns are normalised. `by`: with what; empty: with their own."""

    data: Any
    columns: tuple[str, ...]
    by: tuple[Normalize, ...] = ()

    def prepare(self) -> Splits:
        """Raises: DataError for columns that are not there, or of another form than the constants."""
        splits: Splits = self.data.prepare()
        by = self.by or tuple(constants(splits, self.columns).values())
        train = splits.train
        if isinstance(train, Source):
            _compare(splits, by)
        told = {one.column: {"mean": [*one.mean], "std": [*one.std]} for one in by}
        return replace(
            splits,
            train=replace(train, fns=(*train.fns, *by)) if isinstance(train, Stream) else Rescaled(train, by),
            valid=Rescaled(splits.valid, by) if splits.valid is not None else None,
            description={**splits.description, "normalized": told},
        )


def normalize(data: object, *columns: str) -> Normalized:
    """Each feature of these columns (default: `inputs`), or channel of images, less the mean of all training data, over
    their standard deviation; the held-out part by the same two numbers.

    In a federation "all" are the members' training samples, of which each tells sums and no more (`kv.statistics`): of
    simulated clients when a run begins; of sites in a survey, whose result goes into the pack
    (`konvoi federation pack --statistics`), so that a person sees it before they agree. Elsewhere they are the data.

    >>> import numpy as np
    >>> import konvoi as kv
    >>> data = kv.data.tensors(inputs=np.array([[1.0], [3.0]]), labels=[0, 1], holdout=0)
    >>> [sample["inputs"].tolist() for sample in kv.data.normalize(data).prepare().train]
    [[-1.0], [1.0]]
    """
    wrong = [one for one in columns if not isinstance(one, str) or one == "labels"]
    if wrong:
        raise DataError("normalize takes names of columns that hold numbers", found=repr(wrong[0]), expected='"inputs"')
    data = of(data)
    if already := columns_of(data):
        raise DataError(
            "these data are normalised already",
            found=", ".join(already),
            hint="name all columns in one kv.data.normalize",
        )
    return Normalized(data, tuple(dict.fromkeys(columns)) or ("inputs",))


def columns_of(data: object) -> tuple[str, ...]:
    """Those that are normalised, also where `data.map` is around it; none where the data are not."""
    if isinstance(data, Normalized):
        return data.columns
    return columns_of(data.data) if isinstance(data, Map) else ()


def unnormalized(data: Any) -> Any:
    """What lies under that: what a survey is of."""
    return unnormalized(data.data) if columns_of(data) else data


def known(data: Any, by: Mapping[str, Normalize]) -> Any:
    """Normalised by these constants. Raises: DataError where some are missing."""
    if missing := [name for name in columns_of(data) if name not in by]:
        raise DataError(
            "these data are normalised by the statistics of the federation, which are not known",
            found=", ".join(missing),
            hint="konvoi federation pack --survey, and then pack --statistics statistics.json",
        )
    if isinstance(data, Normalized):
        return replace(data, by=tuple(by[name] for name in data.columns))
    return replace(data, data=known(data.data, by)) if columns_of(data) else data


def constants(splits: Splits, columns: Sequence[str], members: Sequence[Ints | None] = (None,)) -> dict[str, Normalize]:
    """What these columns are normalised by where members have these rows (None: all). Raises: DataError."""
    figures = describe(splits, members, columns=columns)
    return {name: figures.normalize(name) for name in columns}


def of_told(told: Mapping[str, Any]) -> dict[str, Normalize]:
    """The same of `{column: {"mean": [...], "std": [...]}}`. Raises: DataError."""
    try:
        return {name: Normalize.of(name, np.array(one["mean"]), np.array(one["std"])) for name, one in told.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise DataError("these are no statistics of columns", found=repr(error)) from None


def in_words(told: Mapping[str, Any], most: int = 4) -> str:
    """
    >>> in_words({"mean": [0.5, 2.0], "std": [1.0, 0.0]})
    'less the mean 0.5, 2, over the deviation 1, 0'
    """
    rows = (", ".join(f"{value:.6g}" for value in told[name][:most]) for name in ("mean", "std"))
    rest = f" … ({len(told['mean'])} features)" if len(told["mean"]) > most else ""
    return "less the mean {}, over the deviation {}".format(*rows) + rest


def _compare(splits: Splits, by: Sequence[Normalize]) -> None:
    features = {one.name: one.features for one in survey(splits).columns}
    (sample,) = read_samples(splits.train, [Key(seed=0, epoch=0, index=0)])
    for one in by:
        if features.get(one.column) != len(one.mean):
            found = f"{one.column} of {features.get(one.column, 'no')} features"
            raise DataError(
                "the data are not of the form of what normalises them", found=found, expected=f"{len(one.mean)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            is_good = np.isfinite(one(sample)[one.column])
        if not is_good[np.isfinite(np.asarray(sample[one.column]))].all():
            found = f"{one.column} " + in_words({"mean": one.mean, "std": one.std})
            raise DataError("these statistics make no numbers of the data", found=found, expected="within float32")

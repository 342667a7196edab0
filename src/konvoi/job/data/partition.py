"""How one data set becomes that of many clients, by the names that the field has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
from konvoi.job.data.keyed import Keys
from konvoi.job.data.positions import Ints
from konvoi.job.data.reading import read_stacked
from konvoi.job.data.tensors import held_out
from konvoi.values import Source

READ_AT_ONCE = 4096  # samples, to find their labels
MOST_DRAWS = 1000  # until every client has its least

Divide = Callable[["Partition", Source, np.random.Generator], Sequence[Ints]]


@dataclass(frozen=True)
class Partition:
    """Who has which samples of the training part. Made by the functions of this file; the same for the same seed."""

    clients: int  # 0: as many as the data says
    divide: Divide
    least: int = 1  # samples of each client
    seed: int = 0
    values: tuple[tuple[str, Any], ...] = ()  # for the run's record

    def of(self, source: Source) -> list[Ints]:
        """Each client's indices, ascending. Raises: DataError where there are not enough samples."""
        if self.clients and len(source) < self.clients * self.least:
            raise DataError(
                "there are not enough samples for so many clients",
                found=f"{len(source)} samples, {self.clients} clients of at least {self.least}",
                hint=f"clients={max(1, len(source) // self.least)} or fewer",
            )
        generator = np.random.Generator(np.random.Philox(self.seed))
        for _ in range(MOST_DRAWS):
            parts = self.divide(self, source, generator)
            if min(map(len, parts)) >= self.least:
                return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]
        raise DataError(
            f"{MOST_DRAWS} draws leave some client with too few samples",
            found=f"{min(map(len, parts))} samples at the least",
            expected=f"least={self.least}",
            hint="fewer clients, a larger alpha, or a smaller least",
        )

    def describe(self) -> dict[str, Any]:
        return {"clients": self.clients, **dict(self.values), "seed": self.seed}


def iid(*, clients: int, seed: int = 0) -> Partition:
    """Every client has as many samples, drawn at random.

    >>> from konvoi.job.data.tensors import Arrays
    >>> [len(one) for one in iid(clients=3).of(Arrays({"inputs": np.zeros(10)}))]
    [3, 3, 4]
    """
    return Partition(_number(clients), _iid, seed=seed, values=(("kind", "iid"),))


def dirichlet(*, clients: int, alpha: float, by: str = "labels", least: int = 2, seed: int = 0) -> Partition:
    """Each class is divided among the clients by shares from a symmetric Dirichlet distribution: the smaller `alpha`,
    the less alike they are (Hsu et al., arXiv 1909.06335; per class, as in Li et al., arXiv 2102.02079).

    `by` names the column of the samples that holds the classes. Drawn anew until everybody has `least`.

    >>> from konvoi.job.data.tensors import Arrays
    >>> data = Arrays({"labels": np.arange(1000) % 2})
    >>> parts = dirichlet(clients=4, alpha=0.5).of(data)
    >>> sum(map(len, parts)), len({len(one) for one in parts}) > 1
    (1000, True)
    """
    if not alpha > 0:
        raise DataError("alpha is above 0", found=repr(alpha), hint="0.1 is far from alike, 100 nearly the same")
    divide = _by_class(by, lambda count, rows, draw: _cut(rows, draw.dirichlet(np.full(count, alpha)), draw))
    return Partition(_number(clients), divide, least, seed, (("kind", "dirichlet"), ("alpha", alpha), ("by", by)))


def shards(*, clients: int, each: int = 2, by: str = "labels", seed: int = 0) -> Partition:
    """Samples are sorted by class and cut into shards, of which every client gets `each`: most see as many classes
    (McMahan et al., arXiv 1602.05629, section 3).

    >>> from konvoi.job.data.tensors import Arrays
    >>> labels = np.arange(1000) % 10
    >>> parts = shards(clients=10).of(Arrays({"labels": labels}))
    >>> max(len({*labels[one]}) for one in parts) <= 4
    True
    """

    def divide(self: Partition, source: Source, draw: np.random.Generator) -> list[Ints]:
        rows = np.argsort(classes(source, by), kind="stable")
        pieces = np.array_split(rows, clients * each)
        mine = draw.permutation(len(pieces)).reshape(clients, each)
        return [np.concatenate([pieces[number] for number in numbers]) for numbers in mine]

    return Partition(_number(clients), divide, 1, seed, (("kind", "shards"), ("each", each), ("by", by)))


def quantity_skew(*, clients: int, alpha: float = 1.0, least: int = 2, seed: int = 0) -> Partition:
    """Clients differ in how much they have, by shares from a symmetric Dirichlet distribution, and in nothing else (Li
    et al., arXiv 2102.02079, section 3).

    >>> from konvoi.job.data.tensors import Arrays
    >>> sum(map(len, quantity_skew(clients=4, alpha=0.5).of(Arrays({"inputs": np.zeros(100)}))))
    100
    """
    if not alpha > 0:
        raise DataError("alpha is above 0", found=repr(alpha))

    def divide(self: Partition, source: Source, draw: np.random.Generator) -> list[Ints]:
        return _cut(draw.permutation(len(source)), draw.dirichlet(np.full(clients, alpha)), draw)

    return Partition(_number(clients), divide, least, seed, (("kind", "quantity_skew"), ("alpha", alpha)))


def by_key(key: str | Callable[[Any], Any], *, least: int = 1) -> Partition:
    """Natural clients: samples with the same key are one's, e.g. those of a speaker or a hospital. `key` names a column
    of the samples, or is a function of a sample. Who has fewer than `least` is left out.

    >>> from konvoi.job.data.tensors import Arrays
    >>> [one.tolist() for one in by_key("site").of(Arrays({"site": np.array([1, 0, 1, 2])}))]
    [[1], [0, 2], [3]]
    """

    def divide(self: Partition, source: Source, draw: np.random.Generator) -> list[Ints]:
        if callable(key):
            keys = np.array([key(source[index]) for index in range(len(source))])
        else:
            keys = _column(source, key)
        _, inverse = np.unique(keys, return_inverse=True)
        rows = np.argsort(inverse, kind="stable")
        parts = np.split(rows, np.flatnonzero(np.diff(inverse[rows])) + 1)
        kept = [part for part in parts if len(part) >= least]
        if not kept:
            raise DataError("nobody has so many samples", found=f"least={least}", expected=f"{max(map(len, parts))}")
        return kept

    name = key if isinstance(key, str) else getattr(key, "__qualname__", "a function")
    return Partition(0, divide, least, values=(("kind", "by_key"), ("key", name)))


def keep_back(parts: Sequence[Ints], holdout: float) -> tuple[list[Ints], list[Ints]]:
    """Of each client's samples those that it trains on, and those that it keeps for evaluation: of who has two or more
    at least one, drawn at random and the same every time.

    >>> train, held = keep_back([np.arange(10), np.array([7])], holdout=0.2)
    >>> [len(one) for one in train], [len(one) for one in held]
    ([8, 1], [2, 0])
    """
    rows = [held_out(len(part), holdout) for part in parts]
    mine = [part[train] for part, (train, _) in zip(parts, rows, strict=True)]
    return mine, [part[held] for part, (_, held) in zip(parts, rows, strict=True)]


def classes(source: Source, by: str) -> Ints:
    """The class of each sample. Raises: DataError where the samples have no such column of whole numbers."""
    found = _column(source, by)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise DataError(
            f"'{by}' holds no classes", found=f"{found.dtype}, shape {found.shape}", expected="one whole number each"
        )
    return found.astype(np.int64)


def _column(source: Source, name: str) -> NDArray[Any]:
    pieces = []
    for start in range(0, len(source), READ_AT_ONCE):
        rows = np.arange(start, min(start + READ_AT_ONCE, len(source)))
        batch = read_stacked(source, Keys(0, np.zeros_like(rows), rows))
        columns = batch if isinstance(batch, Mapping) else {key: [one[key] for one in batch] for key in batch[0]}
        if name not in columns:
            raise DataError("the samples have no such column", found=name, expected=", ".join(columns))
        pieces.append(np.asarray(columns[name]))
    return np.concatenate(pieces)


def _number(clients: int) -> int:
    if not isinstance(clients, int) or isinstance(clients, bool) or clients < 1:
        raise DataError("clients are a number of at least 1", found=repr(clients))
    return clients


def _iid(self: Partition, source: Source, draw: np.random.Generator) -> list[Ints]:
    return np.array_split(draw.permutation(len(source)), self.clients)[::-1]


def _by_class(by: str, cut: Callable[[int, Ints, np.random.Generator], list[Ints]]) -> Divide:
    def divide(self: Partition, source: Source, draw: np.random.Generator) -> list[Ints]:
        found = classes(source, by)
        each = [cut(self.clients, draw.permutation(np.flatnonzero(found == value)), draw) for value in np.unique(found)]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    return divide


def _cut(rows: Ints, shares: NDArray[np.float64], draw: np.random.Generator) -> list[Ints]:
    return np.split(rows, np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64))

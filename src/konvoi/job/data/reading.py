"""How samples are read: three Protocols for what a source offers, one function that uses the best of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from konvoi.job.data.keyed import Key, Keys, global_generators_kept, seed_global_generators
from konvoi.job.data.positions import Ints
from konvoi.values import Source


@runtime_checkable
class Deterministic(Protocol):
    """A source that says whether reading it draws anything at random; where it draws nothing, seeding is skipped."""

    deterministic: bool


@runtime_checkable
class BatchedSource(Deterministic, Protocol):
    """Reads many samples at once: a dict of arrays, stacked along dim 0. Used only where it is deterministic."""

    def __getitems__(self, indices: Ints, /) -> Mapping[str, Any]: ...


@runtime_checkable
class KeyedSource(Source, Protocol):
    """A source whose samples depend on the key as well: it draws from `key.generator()`."""

    def read(self, keys: Sequence[Key], /) -> list[Any]: ...


def draws_nothing(source: object) -> bool:
    return isinstance(source, Deterministic) and source.deterministic is True


def read_samples(source: Source, keys: Iterable[Key]) -> list[Any]:
    """One sample a key. Data sets that draw from global generators see them seeded by the key, and put back after."""
    if isinstance(source, KeyedSource):
        return source.read(list(keys))
    if draws_nothing(source):
        return [source[key.index] for key in keys]
    samples = []
    with global_generators_kept():
        for key in keys:
            seed_global_generators(key)
            samples.append(source[key.index])
    return samples


def read_stacked(source: Source, keys: Keys) -> Mapping[str, Any] | list[Any]:
    """A dict of stacked arrays where the source can do that, else the samples one by one."""
    if draws_nothing(source) and isinstance(source, BatchedSource):
        return source.__getitems__(keys.indices)
    return read_samples(source, keys)

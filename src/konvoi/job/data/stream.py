"""Iterable data sets: what they must offer so that their order does not depend on the plan, and what it costs.

1. `shard(index, count)`: the stream is cut into *virtual shards*, about 64 unless the data says otherwise. Which shard
   serves which place of a global batch is fixed, so that a worker opens only the shards of its own places.
2. `state_dict()` and `load_state_dict(state)`: every reader reads all and keeps its own; resuming is exact at once.
3. Neither: every reader reads all and keeps its own, and resuming reads again what was read before.

A stream that ends begins again: the next epoch. Its passes must have one length; `set_epoch(epoch)` is called before
each pass where there is one, and whatever it draws from global generators is keyed by (seed, epoch, index in the pass).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from konvoi.errors import DataError
from konvoi.job.data.keyed import Key, Transform, seed_global_generators, transformed


@runtime_checkable
class Resumable(Protocol):
    """A stream that knows where it is, its own shuffling included. A loaded state holds for the next `iter()` only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@runtime_checkable
class Shardable(Protocol):
    """A stream that can be cut: the shards 0..count-1 together hold every sample once."""

    def shard(self, index: int, count: int) -> Iterable[Any]: ...


@runtime_checkable
class SetsEpoch(Protocol):
    """A stream that shuffles anew for each epoch."""

    def set_epoch(self, epoch: int, /) -> None: ...


@dataclass(frozen=True, eq=False)
class Stream:
    """An iterable data set as a job holds it: with its number of virtual shards, and the functions mapped over it."""

    samples: Iterable[Any]
    virtual_shards: int = 64
    fns: tuple[Transform, ...] = ()

    @property
    def is_cut(self) -> bool:
        # Others have a `shard` with other arguments; those streams are read whole.
        if not isinstance(self.samples, Shardable):
            return False
        return {"index", "count"} <= set(inspect.signature(self.samples.shard).parameters)

    def num_shards(self, global_batch: int) -> int:
        """The number nearest to `virtual_shards` that divides the global batch or is a multiple of it.

        Any other would read some shards more often than others.

        >>> [Stream([]).num_shards(batch) for batch in (8, 10, 32, 100, 128)]
        [64, 60, 64, 50, 64]
        """
        wish = self.virtual_shards
        divisors = [count for count in range(1, global_batch + 1) if global_batch % count == 0]
        multiples = [global_batch * (wish // global_batch + more) for more in (0, 1)]
        return min(
            (count for count in divisors + multiples if count > 0), key=lambda count: max(count / wish, wish / count)
        )


class Endless:
    """One iterable read again and again. `num_read` samples are behind it, over all epochs.

    Its caller puts the global generators back. Raises: DataError where a pass yields nothing.
    """

    def __init__(
        self, samples: Iterable[Any], *, seed: int, fns: tuple[Transform, ...] = (), name: str = "the iterable"
    ):
        self._samples, self._seed, self._fns, self._name = samples, seed, fns, name
        self._epoch, self._index, self._length = 0, 0, 0  # a length of 0 is not known yet
        self._iterator: Iterator[Any] | None = None
        self.num_read = 0

    def next(self) -> Any:
        """The next sample, with the functions mapped over it."""
        sample, key = self._advance()
        for fn in self._fns:
            sample, key = transformed(sample, fn, key), key.below()
        return sample

    def skip(self, count: int) -> None:
        """Leave `count` samples out. Whole epochs are not read again once one of them has shown its length."""
        target = self.num_read + count
        while self.num_read < target and not self._length:
            self._advance()
        if self._length and target // self._length > self._epoch:
            self._epoch, self._index, self._iterator = target // self._length, 0, None
            self.num_read = self._epoch * self._length
        while self.num_read < target:
            self._advance()

    def state_dict(self) -> dict[str, Any]:
        """Raises: TypeError where the iterable cannot say where it is."""
        if not isinstance(self._samples, Resumable):
            raise TypeError(f"{self._name} has no state_dict")
        place = {"epoch": self._epoch, "index": self._index, "length": self._length, "num_read": self.num_read}
        return {**place, "stream": self._samples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called. Raises: DataError where the iterable cannot."""
        if not isinstance(self._samples, Resumable):
            raise DataError(f"{self._name} cannot go on from a saved state", expected="load_state_dict(state)")
        self._epoch, self._index, self._length = state["epoch"], state["index"], state["length"]
        self.num_read, self._iterator = state["num_read"], None
        self._samples.load_state_dict(state["stream"])

    def _advance(self) -> tuple[Any, Key]:
        for _ in range(2):  # at the end of a pass: once more, from the beginning
            key = Key(self._seed, self._epoch, self._index)
            seed_global_generators(key)
            if self._iterator is None:
                self._iterator = self._begin()
            for sample in self._iterator:
                self._index += 1
                self.num_read += 1
                return sample, key
            if not self._index:
                break
            self._epoch, self._index, self._length, self._iterator = self._epoch + 1, 0, self._index, None
        raise DataError(f"{self._name} is empty", found="no sample in a pass", expected="at least one")

    def _begin(self) -> Iterator[Any]:
        if isinstance(self._samples, SetsEpoch):
            self._samples.set_epoch(self._epoch)
        return iter(self._samples)

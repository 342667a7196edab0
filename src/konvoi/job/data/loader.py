"""Batches of map-style data: which worker reads which samples at which step, and who reads them ahead."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from konvoi.errors import DataError
from konvoi.job.data.collate import Collate, pinned, tensors_of
from konvoi.job.data.collate import collate as default_collate
from konvoi.job.data.keyed import Keys
from konvoi.job.data.positions import Order, part
from konvoi.job.data.reading import read_stacked
from konvoi.values import MicroBatch, Source

POSITIONS_AHEAD = 4096  # computed at once: 32 positions cost 0.6 ms on their own, 4,096 together 0.7 ms


@dataclass(frozen=True)
class Share:
    """Which samples of every global batch a worker reads, and in how many micro-batches.

    Raises: DataError where some micro-batch would be empty.
    """

    global_batch: int
    worker: int
    num_workers: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.global_batch < self.num_workers * self.accumulate:
            raise DataError(
                "the global batch is too small for the plan: a micro-batch would be empty",
                found=f"{self.global_batch} for {self.num_workers} workers x {self.accumulate} micro-batches",
                expected=f"global_batch >= {self.num_workers * self.accumulate}",
                hint="raise global_batch, or use fewer workers or a smaller accumulate",
            )

    def slots(self) -> list[tuple[int, int]]:
        """(start, stop) inside the global batch, one a micro-batch.

        >>> Share(global_batch=10, worker=1, num_workers=4, accumulate=2).slots()
        [(2, 3), (3, 5)]
        """
        start, stop = part(0, self.global_batch, self.worker, self.num_workers)
        return [part(start, stop, micro, self.accumulate) for micro in range(self.accumulate)]


@dataclass(frozen=True)
class Reader:
    """Keys to a batch of tensors; torch's DataLoader calls it in a loader process."""

    source: Source
    collate: Collate

    def __getitems__(self, keys: Keys) -> Mapping[str, Any]:
        samples = read_stacked(self.source, keys)
        return tensors_of(samples) if isinstance(samples, Mapping) else self.collate(samples)


class Batches:
    """Endless: one list of `accumulate` micro-batches a step, beginning with step `start_step`; one pass at a time.

    Step t covers the positions [t * global_batch, (t + 1) * global_batch) of the job's order; a worker takes its
    contiguous part, cut again into micro-batches. Loader processes read ahead and never change the order. Without
    them samples are read when they are asked for, in this thread: a thread that reads ahead would share the global
    generators with the training step.

    Raises: DataError where the source or a micro-batch would be empty.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        global_batch: int,
        worker: int,
        num_workers: int,
        accumulate: int = 1,
        start_step: int = 0,
        num_loaders: int = 0,
        collate: Collate | None = None,
        pin_memory: bool = False,
    ) -> None:
        self._share = Share(global_batch, worker, num_workers, accumulate)
        self._order = Order(seed, num_samples(source))
        self._start_step, self._num_loaders, self._pin_memory = start_step, num_loaders, pin_memory
        self._reader = Reader(source, collate or default_collate)
        self._batches: Iterator[Mapping[str, Any]] | None = None
        self._pass = 0

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        self.close()
        this_pass = self._pass
        # Held in one place only, so that close() drops the last reference and with it the loader processes.
        self._batches = self._loaded() if self._num_loaders else self._fetched()
        while self._batches is not None and self._pass == this_pass:
            yield [MicroBatch(next(self._batches)) for _ in range(self._share.accumulate)]

    def close(self) -> None:
        """End the loader processes. An iterator that is still held ends, too."""
        self._batches = None
        self._pass += 1

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _keys(self) -> Iterator[Keys]:
        """The keys of each micro-batch of this worker, without end."""
        size, step = self._share.global_batch, self._start_step
        slots = self._share.slots()
        num_steps = -(-POSITIONS_AHEAD // size)
        while True:
            keys = Keys(self._order.seed, *self._order.indices(step * size, (step + num_steps) * size))
            for offset in range(0, num_steps * size, size):
                for start, stop in slots:
                    yield keys[offset + start : offset + stop]
            step += num_steps

    def _fetched(self) -> Iterator[Mapping[str, Any]]:
        for keys in self._keys():
            batch = self._reader.__getitems__(keys)
            yield pinned(batch) if self._pin_memory else batch

    def _loaded(self) -> Iterator[Mapping[str, Any]]:
        import torch
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            self._reader,  # type: ignore[arg-type]  # __getitems__ is all that a DataLoader asks of it here
            batch_sampler=self._keys(),  # type: ignore[arg-type]  # a list of keys each, as arrays
            num_workers=self._num_loaders,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # the reader has made a batch already
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else it takes one draw from the global generator
            # Forked loaders inherit the source; elsewhere forking a process with threads is not safe.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except Exception as error:
                del batches
                # The loader's own traceback is in the message; the frames on this side would keep its processes alive.
                raise error.with_traceback(None)  # noqa: B904  # it is the same error
            yield batch


class Leased:
    """Batches of whatever positions of the job's order are asked for, cut into micro-batches for one worker."""

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        worker: int = 0,
        num_workers: int = 1,
        accumulate: int = 1,
        collate: Collate | None = None,
    ) -> None:
        self._order = Order(seed, num_samples(source))
        self._worker, self._num_workers, self._accumulate = worker, num_workers, accumulate
        self._reader = Reader(source, collate or default_collate)

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[MicroBatch]:
        """This worker's share of what one step of its island reads.

        Raises: DataError where there are fewer samples than forward passes.
        """
        pairs = [self._order.indices(start, stop) for start, stop in ranges]
        epochs, indices = (np.concatenate(one) for one in zip(*pairs, strict=True))
        keys = Keys(self._order.seed, epochs, indices)
        slots = Share(len(keys), self._worker, self._num_workers, self._accumulate).slots()
        return [MicroBatch(self._reader.__getitems__(keys[start:stop])) for start, stop in slots]


def eval_batches(
    source: Source, *, batch: int, worker: int, num_workers: int, collate: Collate | None = None
) -> Iterator[MicroBatch]:
    """Samples 0..n-1 once, in order, in global batches of `batch`: as many items for every worker.

    A worker whose part is empty gets a sample that does not count, so that it takes part in the collectives.
    Raises: DataError where the source is empty.
    """
    length, reader = num_samples(source), Reader(source, collate or default_collate)
    for begin in range(0, length, batch):
        start, stop = part(begin, min(begin + batch, length), worker, num_workers)
        indices = np.arange(start, stop, dtype=np.int64) if start < stop else np.zeros(1, np.int64)
        yield MicroBatch(reader.__getitems__(Keys(0, np.zeros_like(indices), indices)), counts=start < stop)


def num_samples(source: Source) -> int:
    """Raises: DataError where the source is empty."""
    length = len(source)
    if length == 0:
        raise DataError("the data set is empty", found="0 samples", expected="at least one")
    return length


def _as_it_is(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    return batch

"""This worker's part of every batch of a program that keeps its own loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from konvoi.errors import PlanError
from konvoi.island import LiveIsland
from konvoi.job.data.positions import part
from konvoi.plan.island import Island
from konvoi.values import MicroBatch


def first_sample(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """A batch of one sample, and all batches still to come."""
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        first = batches.dataset[0]  # no pass begun, no number drawn
        return (batches.collate_fn([first]) if batches.batch_sampler else cut(batches.collate_fn(first), 0, 1)), batches
    found = iter(batches)
    first = next(found, None)
    return cut(first, 0, 1), itertools.chain([first], found) if found is batches else batches


class Parted:
    """This worker's part of every global batch, which several islands may share."""

    def __init__(
        self, batches: Iterable[Any], island: LiveIsland, seed: int, *, number: int = 0, islands: int = 1
    ) -> None:
        """`number`: this island's, of so many."""
        self.island, self.is_cut, self.takes = island, False, _Takes(island.plan, number, islands)
        self.batches = batches
        is_shared = island.place.num_workers > 1 or islands > 1
        if isinstance(batches, DataLoader) and batches.batch_sampler is not None and is_shared:
            # Read only what is this worker's: the same batches of indices everywhere, each worker its part of them.
            self.batches, self.is_cut = _parted_loader(batches, island.part, self.takes, seed), True

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if not self.is_cut:
                rows = num_rows(batch)
                if not self.takes(rows):
                    continue
                batch = cut(batch, *self.takes.part(rows, self.island.part))
            yield self.island.to_device(MicroBatch(batch)).batch


class _Takes:
    """Whether workers can share a batch of so many samples. The last, incomplete one all of them leave out where they
    cannot. Raises: PlanError for others."""

    def __init__(self, plan: Island, number: int, islands: int) -> None:
        self.plan, self.number, self.islands, self.most = plan, number, islands, 0

    def part(self, rows: int, worker: int) -> tuple[int, int]:
        """What a worker of this island reads."""
        start, stop = part(0, rows, self.number, self.islands)
        return part(start, stop, worker, self.plan.num_parts)

    def __call__(self, rows: int) -> bool:
        self.most = max(self.most, rows)
        if self.plan.pp == 1:
            return rows >= self.plan.num_parts * self.islands
        try:
            for number in range(self.islands):  # all islands come to the same
                start, stop = part(0, rows, number, self.islands)
                self.plan.check_batch(stop - start)
        except PlanError:
            if rows == self.most:
                raise
            return False
        return True


class _PartOfEach:
    """A batch sampler: this worker's part of each batch of another's."""

    def __init__(self, batches: Any, number: int, takes: _Takes) -> None:
        self.batches, self.part, self.takes = batches, number, takes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if self.takes(len(batch)):
                start, stop = self.takes.part(len(batch), self.part)
                yield batch[start:stop]


def _parted_loader(loader: DataLoader[Any], number: int, takes: _Takes, seed: int) -> DataLoader[Any]:
    if isinstance(loader.sampler, RandomSampler) and loader.sampler.generator is None:
        loader.sampler.generator = torch.Generator().manual_seed(seed)  # the same order on every worker
    return DataLoader(
        loader.dataset,
        batch_sampler=_PartOfEach(loader.batch_sampler, number, takes),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,  # it draws a number from it at each pass: the order depends on that, too
    )


def num_rows(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.shape[0]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return max((num_rows(value) for value in values), default=0)


def cut(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: cut(value, start, stop) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(cut(value, start, stop) for value in batch)
    return batch

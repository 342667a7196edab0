"""Samples by their indices, from memory where all of them go in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from konvoi.job.data.collate import Collate, tensors_of
from konvoi.job.data.collate import collate as default_collate
from konvoi.job.data.keyed import Keys
from konvoi.job.data.positions import Ints
from konvoi.job.data.reading import BatchedSource, draws_nothing, read_stacked
from konvoi.values import Source

Read = Callable[[Ints, int], Mapping[str, Any]]
"""`(indices, round)` to a batch. What is random about a sample follows from seed, round and index."""

READ_AT_ONCE = 4096


@dataclass(frozen=True)
class Held:
    """All samples, in memory."""

    columns: Mapping[str, Tensor]

    def __call__(self, indices: Ints, round: int) -> Mapping[str, Any]:
        at = torch.from_numpy(indices).to(next(iter(self.columns.values())).device)
        return {name: tensor.index_select(0, at) for name, tensor in self.columns.items()}

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.columns.values())


def reader(source: Source, seed: int, collate: Collate | None, device: torch.device, memory: int) -> Read:
    """`memory`: bytes that all samples together may take here; where they do not go in, each is read when it is needed,
    and where they do it is a `Held`."""

    def read(indices: Ints, round: int) -> Mapping[str, Any]:
        samples = read_stacked(source, Keys(seed, np.full_like(indices, round), indices))
        return tensors_of(samples) if isinstance(samples, Mapping) else (collate or default_collate)(samples)

    if not (draws_nothing(source) and isinstance(source, BatchedSource)):
        return read
    first = read(np.zeros(1, np.int64), 0)
    size = sum(t.numel() * t.element_size() for t in first.values() if isinstance(t, Tensor))
    if size * len(source) > memory:
        return read
    rows = np.arange(len(source))
    pieces = [read(rows[start : start + READ_AT_ONCE], 0) for start in range(0, len(rows), READ_AT_ONCE)]
    return Held({name: torch.cat([piece[name] for piece in pieces]).to(device) for name in first})

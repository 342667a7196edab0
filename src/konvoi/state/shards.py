"""torch's DCP behind one file: copies of tensors, and reading and writing them as shards.

Loading this module takes as long as half of torch, so that those who write a checkpoint load it beside the training.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from konvoi.errors import DiskFull, KonvoiError, StateError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Copies:
    """This worker's share of the state, copied into buffers that are kept from one checkpoint to the next."""

    def __init__(self, worker: int, num_workers: int) -> None:
        self.worker, self.num_workers = worker, num_workers
        # No pinned or shared memory, no streams: on the step's path there is a plain copy.
        self.stager = DefaultStager(StagingOptions(False, False, False, False))

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return self.stager.stage(share(tensors, self.worker, self.num_workers))  # type: ignore[no-any-return]

    def close(self) -> None:
        self.stager.close()


def share(tensors: Mapping[str, Tensor], worker: int, num_workers: int) -> dict[str, Tensor]:
    """This worker's share of the writing: its shards, and of what every worker holds whole, a part of equal size."""
    load = [0] * num_workers
    mine: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if isinstance(tensor, DTensor):
            mine[name] = tensor
            continue
        owner = load.index(min(load))
        load[owner] += tensor.numel() * tensor.element_size()
        if owner == worker:
            mine[name] = tensor.detach()
    return mine


def write(folder: Path, state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Every worker's share into one folder; the first worker returns when all have written. None: a single worker."""
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    with _alone(group is None):
        dcp.save(state, storage_writer=writer, process_group=group, no_dist=group is None)


def read(folder: Path, tensors: Mapping[str, Tensor], *, num_workers: int) -> None:
    """Read into these tensors, in place, whatever plan they were written under."""
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items()}
    with _alone(num_workers == 1):
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=num_workers == 1)


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, whole and on the CPU, under their names without it."""
    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in wanted.items()}
    with _alone(True):
        dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def explain(error: BaseException, folder: Path) -> BaseException:
    """What went wrong in `write`, as one of our own errors; every worker comes to the same."""
    if isinstance(error, KonvoiError):
        return error
    causes: list[BaseException] = [error]
    if isinstance(error, dcp.api.CheckpointException):
        causes += [failure for failure, _ in error.failures.values()]
    for cause in causes:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL or "No space left" in str(cause) or "File too large" in str(cause):
            return DiskFull(
                "no room on the disk for a checkpoint; the run stops and the last whole checkpoint is intact",
                found=f"{folder}: {os.strerror(number) if number else cause}",
                hint="free some space and go on with --resume",
            )
    return StateError("a checkpoint could not be written", found=f"{type(error).__name__}: {error}")


class _alone(warnings.catch_warnings):  # noqa: N801  (used as a function)
    """Silences DCP's remark that there is one process, where that is meant."""

    def __init__(self, is_meant: bool) -> None:
        super().__init__()
        self.is_meant = is_meant

    def __enter__(self) -> None:
        super().__enter__()
        if self.is_meant:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")

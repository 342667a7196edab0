"""torch's DCP behind one file: copies of tensors, and reading and writing them as shards.

Loading this module takes as long as half of torch, so that those who write a checkpoint load it beside the training.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from konvoi.errors import DiskFull, StateError
from konvoi.state.record import check_own

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where torch has made it a RuntimeError; its zip writer, interrupted in the middle, only misses its position.
FULL_WORDS = ("No space left", "File too large", "quota exceeded", "unexpected pos")


class Copies:
    """This worker's share of the state, copied into buffers that are kept from one checkpoint to the next."""

    def __init__(self, worker: int, num_workers: int) -> None:
        self.worker, self.num_workers = worker, num_workers
        # No pinned or shared memory, no streams: on the step's path there is a plain copy.
        self.stager = DefaultStager(StagingOptions(False, False, False, False))

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        staged: Any = self.stager.stage(share(tensors, self.worker, self.num_workers))  # no Future without a stream
        return dict(staged)

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


def read(folder: Path, tensors: Mapping[str, Tensor], *, num_workers: int) -> list[str]:
    """Read into these tensors, in place, whatever plan they were written under; returns the names that are not there.

    Raises: StateError, on every worker, where a shard cannot be read.
    """
    reader = dcp.FileSystemReader(folder)
    known = _metadata(reader, folder)
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items() if name in known}
    with _alone(num_workers == 1), _readable(folder):
        dcp.load(state, storage_reader=reader, no_dist=num_workers == 1)
    return [name for name in tensors if name not in known]


def sizes(folder: Path, prefix: str) -> dict[str, int]:
    """Bytes of every tensor whose name begins with a prefix, by its name without it."""
    known = _metadata(dcp.FileSystemReader(folder), folder)
    found = {name: entry for name, entry in known.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): e.size.numel() * e.properties.dtype.itemsize for name, e in found.items()}


def read_whole(folder: Path, prefix: str, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, or `only` some of them, whole and on the CPU, under their names
    without it."""
    reader = dcp.FileSystemReader(folder)
    known = _metadata(reader, folder)
    chosen = {name for name in known if name.startswith(prefix)}
    wanted = {name: known[name] for name in chosen if only is None or name.removeprefix(prefix) in only}
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in wanted.items()}
    with _alone(True), _readable(folder):
        dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _metadata(reader: dcp.FileSystemReader, folder: Path) -> dict[str, Any]:
    check_own(folder / ".metadata")  # a pickle
    with _readable(folder):
        return dict(reader.read_metadata().state_dict_metadata)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (dcp.api.CheckpointException, OSError, EOFError, pickle.UnpicklingError) as error:
        causes = [str(cause) for cause, _ in getattr(error, "failures", {}).values()] or [str(error)]
        raise StateError("this checkpoint cannot be read", found=f"{folder}: {causes[0]}") from error


def explain(error: BaseException, folder: Path) -> BaseException:
    """What went wrong in `write`, as one of our own errors; every worker comes to the same.

    What is not about files stays as it is: a broken connection, for one, means that another worker has died.
    """
    causes = [error]
    if isinstance(error, dcp.api.CheckpointException):
        causes = [failure for failure, _ in error.failures.values()]
    causes.sort(key=lambda cause: not isinstance(cause, OSError))  # those that say most first
    for cause in causes:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL or any(word in str(cause) for word in FULL_WORDS):
            return DiskFull(
                "no room on the disk for a checkpoint; the run stops and the last whole checkpoint is intact",
                found=f"{folder}: {os.strerror(number) if number else str(cause).splitlines()[0]}",
                hint="free some space and go on with --resume",
            )
    refused = [cause for cause in causes if isinstance(cause, OSError)]
    if not refused:
        return error
    return StateError("a checkpoint could not be written", found=f"{type(refused[0]).__name__}: {refused[0]}")


@contextlib.contextmanager
def _alone(is_meant: bool) -> Iterator[None]:
    """Silences DCP's remark that there is one process, where that is meant."""
    with warnings.catch_warnings():
        if is_meant:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield

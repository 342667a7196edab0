"""Checkpoints: torch's DCP, written beside the training, whole or not at all.

A checkpoint is a folder `step-000120/` of DCP shards and `facts.json`. It is written as `.step-000120.partial/` and
renamed when every worker has written its part and all of it is on disk, so that whoever is killed at whatever byte, a
folder with the final name is whole.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole on disk."""

    step: int
    path: Path
    size_bytes: int
    blocked_s: float
    seconds: float


def find(folder: Path) -> list[tuple[int, Path]]:
    """The whole checkpoints in a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := NAME.match(path.name))]
    return sorted(found)


def facts_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises: StateError."""
    try:
        return json.loads((path / "facts.json").read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise StateError("this is no checkpoint of Konvoi", found=f"{path}: {error}", expected="a folder with facts.json") from None


class Checkpoints:
    """Writes the checkpoints of one run. `save` returns as soon as the state is copied; a thread writes it.

    Keeps the newest `keep` and the best. Every worker calls `save` and `close` at the same steps.
    """

    def __init__(self, folder: Path, *, keep: int, worker: int, num_workers: int, on_saved: Callable[[Saved], None]) -> None:
        self.folder, self.keep, self.worker, self.num_workers = folder, keep, worker, num_workers
        self.on_saved = on_saved
        self.best_step: int | None = None
        # No pinned or shared memory, no streams: on the step's path there is a plain copy into buffers that are kept.
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self.group: dist.ProcessGroup | None = None
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.blocked_s = 0.0

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, is_best: bool = False) -> None:
        """Copy the state and begin to write it. Raises: what the last writing ran into, e.g. DiskFull."""
        begin = time.perf_counter()
        self.wait()
        if self.group is None and self.num_workers > 1:
            self.group = dist.new_group(backend="gloo")  # its own, as its collectives run beside the training's
        if is_best:
            self.best_step = step
        staged = self.stager.stage(_share(tensors, self.worker, self.num_workers))
        blocked_s = time.perf_counter() - begin
        self.blocked_s += blocked_s
        arguments = (step, staged, dict(facts), blocked_s)
        self.thread = threading.Thread(target=self._write, args=arguments, name="konvoi-checkpoint", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raise what the last writing ran into, without waiting."""
        if self.thread is not None and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is whole on disk. Raises: DiskFull, StateError."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def close(self) -> None:
        """Let go of threads and buffers, without waiting for a good end."""
        if self.thread is not None:
            self.thread.join()
        self.stager.close()

    def _write(self, step: int, staged: dict[str, Any], facts: dict[str, Any], blocked_s: float) -> None:
        begin = time.perf_counter()
        partial, final = self.folder / f".step-{step:06d}.partial", self.folder / f"step-{step:06d}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            writer = dcp.FileSystemWriter(partial, single_file_per_rank=True, sync_files=True, thread_count=1)
            dcp.save(staged, storage_writer=writer, process_group=self.group, no_dist=self.num_workers == 1)
            if self.worker == 0:
                # DCP's coordinator returns when every worker has written.
                _publish(partial, final, facts)
                size = sum(file.stat().st_size for file in final.iterdir())
                self.on_saved(Saved(step, final, size, blocked_s, time.perf_counter() - begin + blocked_s))
                self._prune()
        except BaseException as error:
            self.failure = _explain(error, partial)
            if self.worker == 0:
                shutil.rmtree(partial, ignore_errors=True)

    def _prune(self) -> None:
        whole = find(self.folder)
        for step, path in whole[: -self.keep] if self.keep else []:
            if step != self.best_step:
                shutil.rmtree(path, ignore_errors=True)


def _share(tensors: Mapping[str, Tensor], worker: int, num_workers: int) -> dict[str, Tensor]:
    """This worker's share of the writing: its shards, and of what every worker holds whole, a part of equal size."""
    load = [0] * num_workers
    share: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if isinstance(tensor, DTensor):
            share[name] = tensor
            continue
        owner = load.index(min(load))
        load[owner] += tensor.numel() * tensor.element_size()
        if owner == worker:
            share[name] = tensor.detach()
    return share


def _publish(partial: Path, final: Path, facts: dict[str, Any]) -> None:
    path = partial / "facts.json"
    path.write_text(json.dumps(facts, indent=1))
    _sync(path)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)  # a step that was saved before, and redone
    os.rename(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: BaseException, path: Path) -> BaseException:
    if isinstance(error, KonvoiError):
        return error
    found: list[BaseException] = [error]
    if isinstance(error, dcp.api.CheckpointException):
        found += [failure for failure, _ in error.failures.values()]
    for failure in found:
        if isinstance(failure, OSError) and failure.errno in FULL or "No space left" in str(failure) or "File too large" in str(failure):
            return DiskFull(
                "no room on the disk for a checkpoint; the run stops and the last whole checkpoint is intact",
                found=f"{path.parent}: {os.strerror(failure.errno) if isinstance(failure, OSError) and failure.errno else failure}",
                hint="free some space and go on with --resume",
            )
    return StateError("a checkpoint could not be written", found=f"{type(error).__name__}: {error}")


def load(path: Path, tensors: Mapping[str, Tensor], *, num_workers: int) -> None:
    """Read a checkpoint into these tensors, in place, whatever plan it was written under."""
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=num_workers == 1)


def read_whole(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, whole and on the CPU, under their names without it."""
    reader = dcp.FileSystemReader(path)
    wanted = {name: entry for name, entry in reader.read_metadata().state_dict_metadata.items() if name.startswith(prefix)}
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in wanted.items()}  # type: ignore[union-attr]
    dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

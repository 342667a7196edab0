"""Checkpoints, written beside the training, whole or not at all.

A checkpoint is a folder `step-000120/` of DCP shards and `facts.json`. It is written as `.step-000120.partial/` and
renamed when every worker has written its part and all of it is on disk, so that whoever is killed at whatever byte, a
folder with the final name is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from konvoi.errors import StateError

if TYPE_CHECKING:
    from konvoi.state.shards import Copies

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
        raise StateError(
            "this is no checkpoint of Konvoi", found=f"{path}: {error}", expected="a folder with facts.json"
        ) from None


class Checkpoints:
    """Writes the checkpoints of one run. `save` returns as soon as the state is copied; a thread writes it.

    Keeps the newest `keep` and the best. Every worker calls `save` and `close` at the same steps.
    """

    def __init__(
        self, folder: Path, *, keep: int, worker: int, num_workers: int, on_saved: Callable[[Saved], None]
    ) -> None:
        self.folder, self.keep, self.worker, self.num_workers = folder, keep, worker, num_workers
        self.on_saved = on_saved
        self.best_step: int | None = None
        self.copies: Copies | None = None
        self.group: dist.ProcessGroup | None = None
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def load_early(self) -> None:
        """Load what saving needs in a thread: the first step need not wait for it, nor the first checkpoint."""
        threading.Thread(target=self._copies, name="konvoi-load", daemon=True).start()

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, is_best: bool = False
    ) -> None:
        """Copy the state and begin to write it. Raises: what the last writing ran into, e.g. DiskFull."""
        begin = time.perf_counter()
        self.wait()
        if self.group is None and self.num_workers > 1:
            self.group = dist.new_group(backend="gloo")  # its own, as its collectives run beside the training's
        if is_best:
            self.best_step = step
        copy = self._copies().take(tensors)
        arguments = (step, copy, dict(facts), time.perf_counter() - begin)
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
        if self.copies is not None:
            self.copies.close()

    def _copies(self) -> Copies:
        from konvoi.state.shards import Copies

        self.copies = self.copies or Copies(self.worker, self.num_workers)
        return self.copies

    def _write(self, step: int, copy: dict[str, Any], facts: dict[str, Any], blocked_s: float) -> None:
        from konvoi.state import shards

        begin = time.perf_counter()
        partial, final = self.folder / f".step-{step:06d}.partial", self.folder / f"step-{step:06d}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            shards.write(partial, copy, self.group)
            if self.worker == 0:
                _publish(partial, final, facts)
                size = sum(file.stat().st_size for file in final.iterdir())
                self.on_saved(Saved(step, final, size, blocked_s, time.perf_counter() - begin + blocked_s))
                self._prune()
        except BaseException as error:
            self.failure = shards.explain(error, self.folder)
            if self.worker == 0:
                shutil.rmtree(partial, ignore_errors=True)

    def _prune(self) -> None:
        whole = find(self.folder)
        for step, path in whole[: -self.keep] if self.keep else []:
            if step != self.best_step:
                shutil.rmtree(path, ignore_errors=True)


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

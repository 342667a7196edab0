"""Checkpoints, written beside the training, whole or not at all.

A checkpoint is a folder `step-000120/` of DCP shards and `facts.json`. It is written as `.step-000120.partial/` and
renamed when every worker has written its part and all of it is on disk, and renamed to `.step-000120.old/` before it
is deleted: whoever is killed at whatever byte, a folder with the final name is whole.
"""

from __future__ import annotations

import importlib
import json
import os
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
from konvoi.state.journal import sync
from konvoi.state.record import check_own, whole_checkpoints

if TYPE_CHECKING:
    from konvoi.state.shards import Copies


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole on disk."""

    step: int
    path: Path
    size_bytes: int
    blocked_s: float
    seconds: float


def facts_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises: StateError, also where a file of it is missing or has been cut."""
    facts = path / "facts.json"
    try:
        check_own(facts)
        found: dict[str, Any] = json.loads(facts.read_text())
        sizes: dict[str, int] = found["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{facts}: {error}", "a folder with facts.json") from None
    for name, expected in sizes.items():
        size = (path / name).stat().st_size if (path / name).exists() else None
        if size != expected:
            what = f"{size} bytes" if size is not None else "no file"
            raise _damaged(path, f"{what} at {path / name}", f"{expected} bytes")
    return found


def _damaged(path: Path, found: str, expected: str) -> StateError:
    others = [step for step, other in whole_checkpoints(path.parent) if other != path]
    hint = f"move {path} away to go on from step {others[-1]}" if others else "there is no other checkpoint of this run"
    return StateError("this checkpoint is damaged", found=found, expected=expected, hint=hint)


class Checkpoints:
    """Writes the checkpoints of one run. `save` returns as soon as the state is copied; a thread writes it.

    Keeps the newest `keep` (0: all) and the best. Every worker calls `save` and `close` at the same steps. `on_saved`
    is called on worker 0 in the thread that trains, from `check`, `save` or `wait`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        worker: int,
        num_workers: int,
        share: tuple[int, int],
        on_saved: Callable[[Saved], None],
    ) -> None:
        self.folder, self.keep, self.worker, self.num_workers = folder, keep, worker, num_workers
        self.share = share  # which worker of how many that hold the same
        self.on_saved = on_saved
        self.best_step: int | None = None
        self.copies: Copies | None = None
        self.group: dist.ProcessGroup | None = None
        self.thread: threading.Thread | None = None
        self.saved: Saved | None = None
        self.failure: BaseException | None = None
        if worker == 0:
            _clear(folder)

    def load_early(self) -> None:
        """Load what saving needs in a thread: the first step need not wait for it, nor the first checkpoint."""
        load = importlib.import_module
        threading.Thread(target=load, args=("konvoi.state.shards",), name="konvoi-load", daemon=True).start()

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
        saved, failure = self.saved, self.failure
        self.saved = self.failure = None
        if saved is not None:
            self.on_saved(saved)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let go of threads and buffers, without waiting for a good end."""
        if self.thread is not None:
            self.thread.join()
        if self.copies is not None:
            self.copies.close()

    def _copies(self) -> Copies:
        from konvoi.state.shards import Copies

        self.copies = self.copies or Copies(*self.share)
        return self.copies

    def _write(self, step: int, copy: dict[str, Any], facts: dict[str, Any], blocked_s: float) -> None:
        from konvoi.state import shards

        begin = time.perf_counter()
        partial, final = self.folder / f".step-{step:06d}.partial", self.folder / f"step-{step:06d}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            shards.write(partial, copy, self.group)
            if self.worker == 0:
                size = _publish(partial, final, facts)
                self.saved = Saved(step, final, size, blocked_s, time.perf_counter() - begin + blocked_s)
                self._prune()
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)  # by every worker: the first to report it ends the others
            self.failure = shards.explain(error, self.folder)

    def _prune(self) -> None:
        whole = whole_checkpoints(self.folder)
        for step, path in whole[: -self.keep] if self.keep else []:
            if step != self.best_step:
                _delete(path)


def _publish(partial: Path, final: Path, facts: dict[str, Any]) -> int:
    """Make a folder that is whole one that is found; returns its size in bytes."""
    sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    path = partial / "facts.json"
    path.write_text(json.dumps(facts | {"files": sizes}, indent=1))
    sync(path)
    sync(partial)
    if final.exists():
        _delete(final)  # a step that was saved before, and redone
    os.rename(partial, final)
    sync(final.parent)
    return sum(sizes.values())


def _delete(path: Path) -> None:
    """Whoever is killed half-way leaves nothing that looks whole."""
    old = path.with_name(f".{path.name}.old")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Delete what a killed run left half written, or half deleted."""
    for pattern in (".step-*.partial", ".step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)

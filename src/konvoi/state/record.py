"""The run's folder: `runs/<name>/` with the plan, the job, events, checkpoints and the report."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from konvoi.errors import StateError, did_you_mean

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Record:
    """Where a run keeps what. A value: the folder need not exist yet."""

    folder: Path

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def newest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        whole = whole_checkpoints(self.checkpoints)
        return whole[-1][0] if whole else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In the block no other process trains this run; the kernel lets go when this one ends, however it does.

        Raises: StateError where another one does. On systems without `flock` nothing is held.
        """
        if fcntl is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    "another process is training this run",
                    found=self.folder,
                    hint="wait until it ends, or start a new run under another --name",
                ) from None
            yield

    def write(self, job: Mapping[str, Any], plan: Mapping[str, Any], task: bytes) -> None:
        """Describe the run for people (JSON) and for later verbs (`task.pickle`)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("job", job), ("plan", plan)):
            _write_whole(self.folder / f"{name}.json", json.dumps(content, indent=1, default=str).encode())
        _write_whole(self.folder / "task.pickle", task)

    def task(self) -> Any:
        """The job and plan as they were. Raises: StateError for a folder that is no run, or not this user's."""
        path = self.folder / "task.pickle"
        if not path.is_file():
            raise StateError("this is no run of Konvoi", found=self.folder, expected="a folder with task.pickle")
        check_own(path)
        try:
            return cloudpickle.loads(path.read_bytes())
        except Exception as error:
            # Whatever unpickling runs into: a class that has moved, a module that is gone, a cut file.
            raise StateError(
                "this run's job cannot be read back",
                found=f"{path}: {type(error).__name__}: {error}",
                hint="a run is read by a program that can import what its recipe imported",
            ) from error


def whole_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The steps and paths of the whole checkpoints in a folder, oldest first."""
    return sorted((int(match[1]), path) for path in folder.glob("step-*") if (match := CHECKPOINT.match(path.name)))


def check_own(path: Path) -> None:
    """A pickle is a program: one that somebody else wrote is not run. Raises: StateError."""
    if path.stat().st_uid != os.getuid():
        raise StateError(
            "this run belongs to another user", found=path, hint="copy the folder if you trust who made it"
        )


def pickled(value: Any) -> bytes:
    """Functions and classes of the user's own program travel by value. Never used between islands."""
    return bytes(cloudpickle.dumps(value))


def carry_by_value(module: Any) -> None:
    """Let a recipe's own module travel with what it defines: a worker cannot import it."""
    cloudpickle.register_pickle_by_value(module)


def create(root: Path, name: str | None) -> Record:
    """A new run's folder. Raises: StateError where the name is taken."""
    record = Record(root / (name or time.strftime("%Y-%m-%d-%H%M%S")))
    number = 1
    while name is None and record.folder.exists():
        number += 1
        record = Record(root / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{number}")
    if (record.folder / "task.pickle").exists():
        raise StateError(
            "there is a run of this name",
            found=record.folder,
            hint="--resume goes on with it; another --name starts anew",
        )
    return record


def find(root: Path, which: str | Path | bool) -> Record:
    """A run by its folder or its name; True: the newest. Raises: StateError."""
    runs = sorted(
        (path.parent for path in root.glob("*/task.pickle")), key=lambda path: (path / "task.pickle").stat().st_mtime
    )
    if which is True or which == "":
        if not runs:
            raise StateError("there is no run to go on with", found=f"nothing in {root}/")
        return Record(runs[-1])
    for folder in (Path(str(which)), root / str(which)):
        if (folder / "task.pickle").exists():
            return Record(folder)
    raise StateError(
        "no such run", found=str(which), hint=did_you_mean(str(which), [path.name for path in runs]) if runs else ""
    )


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)

"""Logs of lines that are only added to, by several processes: a line is there whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def append(path: Path, line: bytes) -> None:
    """As `add`, to a file for the owner's eyes alone."""
    descriptor = opened(path)
    try:
        add(descriptor, line)
    finally:
        os.close(descriptor)


def opened(path: Path) -> int:
    """A descriptor for `add`. Raises: OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


def add(descriptor: int, line: bytes) -> None:
    """A line's end is added. On disk when this returns; where it raises, the log is as it was. Raises: OSError."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        end = _cut(descriptor)
        try:
            _write(descriptor, line + b"\n")
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, end)
            raise
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def since(path: Path, start: int = 0) -> list[bytes]:
    """The whole lines from this byte on, without their ends."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # a line that is being written may yet be taken back
        file.seek(start)
        return file.read().split(b"\n")[:-1]


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process, and one of its threads, at a time: of those who read a file and then write it anew. `path` is a file
    for this alone. Raises: OSError."""
    descriptor = opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    """A disk that is nearly full takes less than it is given, and says so by a number alone."""
    while data:
        data = data[os.write(descriptor, data) :]


def _cut(descriptor: int) -> int:
    """Where the log ends. Half a line is of a process that was killed: left there, the next would be glued to it."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    end = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, end)
    return end

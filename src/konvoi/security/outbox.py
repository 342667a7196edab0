"""What has left a site: a log that is written before anything is sent, each entry chained to the one before."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from konvoi import lines
from konvoi.errors import DiskFull, StateError

BEGINNING = "0" * 64


@dataclass(frozen=True)
class Entry:
    """Something that left: when, to whom, what it was, how large, and the hash of its bytes."""

    number: int
    at: float  # seconds since the epoch
    to: str
    run: str
    recipe: str  # hash of the approved pack
    kind: str  # of frame
    fields: tuple[str, ...]  # that were in it
    size: int  # bytes, as they were before encryption
    hash: str  # of these
    previous: str  # hash of the entry before

    def line(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def head(self) -> str:
        """What the next entry is chained to."""
        return hashlib.sha256(self.line().encode()).hexdigest()


class Outbox:
    """Appended to by one process, and read by anybody at the site.

    An entry is on disk before `record` returns. One that is there says that its bytes may have left, not that they have
    arrived: what is sent again after a broken connection stands here twice.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises: StateError for a log whose chain is broken."""
        self.path, self._clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        entries = [*read(path)]
        self._number, self._head = len(entries), entries[-1].head if entries else BEGINNING
        self._file = lines.opened(path)

    def record(self, to: str, run: str, recipe: str, kind: str, fields: Sequence[str], data: bytes) -> Entry:
        """Before `data` is sent. Raises: DiskFull where it cannot be written down; then nothing may be sent."""
        hash = hashlib.sha256(data).hexdigest()
        entry = Entry(self._number, self._clock(), to, run, recipe, kind, tuple(fields), len(data), hash, self._head)
        try:
            lines.add(self._file, entry.line().encode())
        except OSError as error:
            raise DiskFull(
                "nothing leaves: the outbox cannot be written", found=f"{self.path}: {error.strerror}"
            ) from error
        self._number, self._head = entry.number + 1, entry.head
        return entry

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[Entry]:
    """What has left, the oldest first. Raises: StateError where an entry was changed, taken out, or put elsewhere.

    Half a line at the end is of a process that was killed while writing, and had not sent anything yet.
    """
    if not path.exists():
        return
    head, number = BEGINNING, 0
    for data in lines.since(path):
        try:
            line = data.decode()
            found = json.loads(line)
            entry = Entry(**{**found, "fields": tuple(found["fields"])})
        except (ValueError, TypeError, KeyError) as error:
            raise StateError("the outbox cannot be read", found=f"{path}, entry {number}: {error}") from None
        if entry.previous != head or entry.number != number or entry.line() != line:
            raise StateError(
                "the outbox was changed after it was written",
                found=f"{path}, entry {number}",
                expected="an entry that goes on from the one before",
            )
        yield entry
        head, number = entry.head, number + 1


def summary(entries: Iterator[Entry] | Sequence[Entry]) -> dict[str, Any]:
    """How much of what has left, by run and kind: `{run: {kind: {"frames": 3, "bytes": 1200}}}`."""
    found: dict[str, Any] = {}
    for entry in entries:
        one = found.setdefault(entry.run, {}).setdefault(entry.kind, {"frames": 0, "bytes": 0})
        one["frames"] += 1
        one["bytes"] += entry.size
    return found


def as_rows(entries: Sequence[Entry]) -> list[Sequence[str]]:
    """For a person, a row each."""
    rows: list[Sequence[str]] = [("when", "to", "run", "what", "fields", "bytes", "hash")]
    for one in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
        rows.append((when, one.to, one.run, one.kind, _in_short(one.fields), f"{one.size:,}", one.hash[:12]))
    return rows


def _in_short(fields: Sequence[str]) -> str:
    """
    >>> _in_short(("run", "move a", "move b"))
    'run, move of 2 parameters'
    """
    whole = [name for name in fields if " " not in name]
    parts = Counter(name.partition(" ")[0] for name in fields if " " in name)
    return ", ".join([*whole, *(f"{part} of {number} parameters" for part, number in parts.items())])

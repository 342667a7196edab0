"""What must outlive a process at every word that it gives: a few bytes, and what they name, each on disk before the
word is given."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from konvoi.lines import append as append  # what is named here outlives a process, too
from konvoi.lines import since


class Journal:
    """A folder with one file for the newest entry, and one for each thing that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "named").mkdir(parents=True, exist_ok=True)
        sync(folder)
        sync(folder.parent)

    def write(self, entry: bytes, named: Mapping[str, bytes]) -> None:
        """Whole or not at all: after a crash either this entry is there with all that it names, or the one before."""
        for name, data in named.items():
            path = self.folder / "named" / name
            if not path.exists():
                write(path, data)
        write(self.folder / "entry", entry)

    def read(self) -> bytes | None:
        """The newest entry; None where there is none."""
        try:
            return (self.folder / "entry").read_bytes()
        except FileNotFoundError:
            return None

    def named(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "named").iterdir() if "." not in path.name}

    def keep_only(self, names: Collection[str]) -> None:
        for path in (self.folder / "named").iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """On disk when this returns; after a crash there is this file, or the one before."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)  # on a full disk it would stand in the way of the next
        raise
    sync(path.parent)


def lines(path: Path) -> list[bytes]:
    """Those that are whole."""
    return since(path) if path.exists() else []


def sync(path: Path) -> None:
    """A file, or the names in a folder, are on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Which files a text is, and which of them are held out."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from konvoi.errors import DataError, did_you_mean

TextSource: TypeAlias = str | Path | Sequence[str | Path]

# The standard library's own tests, what others installed, and what is no source.
NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Piece:
    """One document: the bytes [start, stop) of a file. `name` is relative to where it was found."""

    name: str
    path: str
    start: int
    stop: int
    mtime_ns: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def read(self) -> bytes:
        """Raises: DataError where the file cannot be read, or has changed its length."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(data) != self.size:
            raise DataError(f"{self.path} changed while it was read", found=f"{len(data)} bytes", expected=self.size)
        return data


def find(source: TextSource) -> list[Piece]:
    """The files of a source, sorted by name; those inside a folder may be empty and are left out then.

    Raises: DataError where a path is missing, a glob matches nothing, or there is no text.
    """
    if isinstance(source, (str, Path)):
        pieces = list(_files(source))
    else:
        # Named by their whole paths: two folders may hold files of the same name.
        pieces = [replace(piece, name=piece.path) for item in source for piece in _files(item)]
    unique = {piece.path: piece for piece in pieces if piece.size}
    if not unique:
        found = f"{len(pieces)} files, all of them empty" if pieces else "no file"
        raise DataError(f"there is no text in {source}", found=found, expected="at least one file that is not empty")
    return sorted(unique.values(), key=lambda piece: piece.name)


def hold_out(pieces: Sequence[Piece], holdout: float) -> tuple[list[Piece], list[Piece]]:
    """(train, valid): whole files, in the order of their names' hashes, up to a share `holdout` of the bytes.

    Where whole files give less than half of that (one file, or few large ones), the end of the largest is cut off.
    """
    budget = holdout * sum(piece.size for piece in pieces)
    valid: set[str] = set()
    held = 0
    for piece in sorted(pieces, key=lambda piece: name_hash(piece.name)):
        if held + piece.size <= budget:
            held += piece.size
            valid.add(piece.path)
    if held < budget / 2:
        return _cut_end(pieces, round(budget))
    return [piece for piece in pieces if piece.path not in valid], [piece for piece in pieces if piece.path in valid]


def name_hash(name: str) -> int:
    """64 bits that depend on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")


def unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read", found=error.strerror or error, expected="a readable file")


def _cut_end(pieces: Sequence[Piece], num_bytes: int) -> tuple[list[Piece], list[Piece]]:
    largest = max(pieces, key=lambda piece: piece.size)
    cut = largest.stop - num_bytes
    newline = replace(largest, start=max(largest.start, cut - 4096), stop=cut).read().rfind(b"\n")
    if newline >= 0:  # at the end of a line, where one is near
        cut = max(largest.start, cut - 4096) + newline + 1
    train = [replace(piece, stop=cut) if piece is largest else piece for piece in pieces]
    return [piece for piece in train if piece.size], [replace(largest, start=cut)]


def _files(source: str | Path) -> Iterator[Piece]:
    if source == "stdlib":
        return _stdlib()
    text = os.path.expanduser(source)
    if os.path.isdir(text):
        return _folder(text)
    if os.path.lexists(text):
        return iter([_named(text)])
    if glob.has_magic(text):
        return _matches(text)
    raise _missing(text)


def _stdlib() -> Iterator[Piece]:
    root = sysconfig.get_paths()["stdlib"]
    return (piece for piece in _folder(root, NOT_STDLIB) if piece.name.endswith(".py"))


def _folder(root: str, leave_out: frozenset[str] = frozenset({"__pycache__"})) -> Iterator[Piece]:
    """Every file below `root` that is not hidden."""

    def fail(error: OSError) -> None:
        raise unreadable(error.filename, error) from error

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in leave_out and not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                yield _piece(os.path.relpath(path, root) if folder != root else name, path)


def _matches(pattern: str) -> Iterator[Piece]:
    paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    if not paths:
        hint = "quote the pattern in a shell; ** matches folders within folders"
        raise DataError("the pattern matches no file", found=pattern, expected="at least one file", hint=hint)
    return (_piece(path, path) for path in paths)


def _named(path: str) -> Piece:
    piece = _piece(os.path.basename(path), path)
    if not piece.size:
        raise DataError(f"{path} is empty", found="0 bytes", expected="text")
    return piece


def _piece(name: str, path: str) -> Piece:
    try:
        status = os.stat(path)
        if not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied", path)
    except OSError as error:
        raise unreadable(path, error) from error
    return Piece(name, os.path.abspath(path), 0, status.st_size, status.st_mtime_ns)


def _missing(path: str) -> DataError:
    folder, name = os.path.split(os.path.abspath(path))
    neighbours = os.listdir(folder) if os.path.isdir(folder) else []
    near = did_you_mean(name, neighbours) if neighbours else ""
    hint = near if near.startswith("did you mean") else "a path, a glob, a list of them, or 'stdlib'"
    if did_you_mean(path, ["stdlib"]).startswith("did you mean"):
        hint = "did you mean 'stdlib'?"
    return DataError(
        f"there is no {path}", found=f"nothing at {os.path.abspath(path)}", expected="a file or folder", hint=hint
    )

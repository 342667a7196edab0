"""Prepared data is kept in a folder named by what it was made from; it appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from konvoi.errors import DataError

FORMAT = 1  # part of every name: raise it when what is written changes
META = "meta.json"


def cache_root(cache_dir: str | Path | None) -> Path:
    """`cache_dir`, else $KONVOI_CACHE, else ~/.cache/konvoi."""
    return Path(cache_dir or os.environ.get("KONVOI_CACHE") or Path.home() / ".cache" / "konvoi").expanduser()


def cached(
    kind: str, identity: Any, build: Callable[[Path], Mapping[str, Any]], cache_dir: str | Path | None
) -> tuple[Path, dict[str, Any]]:
    """(folder, what `build(folder)` returned), built only where the cache does not have it.

    `identity` is plain JSON and decides the name. Two processes may build at once: the first rename wins, and both
    get its folder. Raises: DataError where the cache cannot be written.
    """
    name = hashlib.sha256(json.dumps([FORMAT, identity]).encode()).hexdigest()[:20]
    folder = cache_root(cache_dir) / f"{kind}-{name}"
    meta = _read_meta(folder)
    if meta is None:
        try:
            _build(folder, build)
        except OSError as error:
            hint = "set KONVOI_CACHE, or pass cache_dir=, to a folder with room"
            raise DataError("prepared data cannot be written", found=error, expected=str(folder), hint=hint) from error
        meta = _read_meta(folder)
    if meta is None:
        raise DataError("prepared data is damaged", found=str(folder), hint="remove this folder and try again")
    return folder, meta


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """None where the folder is missing or a file of it has not its size."""
    try:
        record = json.loads((folder / META).read_bytes())
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return dict(record["meta"]) if whole else None


def _build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".draft", dir=folder.parent))
    try:
        meta = build(draft)
        files = {path.name: path.stat().st_size for path in draft.iterdir()}
        (draft / META).write_text(json.dumps({"files": files, "meta": meta}))
        if folder.exists() and _read_meta(folder) is None:  # damaged: out of the way, in one move
            folder.rename(draft / "damaged")
        try:
            draft.rename(folder)
            shutil.rmtree(folder / "damaged", ignore_errors=True)
        except OSError:  # another process was first; its folder holds the same, or the caller finds that it does not
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)

"""What of a run lies on the server's disk: its decisions, the agreed weights, and updates that wait to be added up."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import StateError
from konvoi.plan.convoy import Convoy
from konvoi.security import pack as packs
from konvoi.security.pack import Pack
from konvoi.sites.adding import Agreed
from konvoi.sites.protocol import PIECE, hash_of
from konvoi.sites.surveying import Surveyed
from konvoi.state.journal import append, lines, sync, write


class Disk:
    """A run's folder. What a call has written is there when it returns. Raises: OSError, from every call."""

    def __init__(self, folder: Path, pack: Pack, plan: Convoy) -> None:
        self.folder, self.pack, self.plan = folder, pack, plan
        for name in ("weights", "updates"):
            (folder / name).mkdir(exist_ok=True)

    # -- decisions -----------------------------------------------------------------------------------------------------

    def history(self) -> list[dict[str, Any]]:
        """Every decision, the oldest first; a half-written one had not been told to anybody."""
        return [json.loads(line) for line in lines(self.folder / "decisions.jsonl")]

    def decide(self, entry: Mapping[str, Any]) -> None:
        append(self.folder / "decisions.jsonl", json.dumps(entry).encode())
        sync(self.folder)

    # -- weights -------------------------------------------------------------------------------------------------------

    def first(self) -> str:
        """The hash of the weights that all begin with."""
        data = packs.initial(self.folder / "pack", self.pack)
        assert self.plan.local is not None
        if self.plan.local.controls:
            data += bytes(len(data))  # that begin with zeros
        base = hash_of(data)
        if not (self.folder / "weights" / base).exists():
            write(self.folder / "weights" / base, data)
        return base

    def agreed(self, base: str) -> Agreed | Surveyed:
        """As they were behind the decision for these weights. Raises: StateError for a file that is damaged."""
        path = self.folder / "weights" / base
        data = path.read_bytes()
        if hash_of(data) != base:
            raise StateError("the agreed weights are damaged", found=path)
        if self.pack.kind == "survey":
            return Surveyed(data)
        outer = path.with_name(f"{base}.outer")
        return Agreed(self.plan, np.frombuffer(data, "<f4"), outer.read_bytes() if outer.exists() else None)

    def keep(self, data: bytes, beside: bytes) -> str:
        """New weights and what goes on beside them; returns their hash."""
        base = hash_of(data)
        write(self.folder / "weights" / f"{base}.outer", beside)
        write(self.folder / "weights" / base, data)
        return base

    def keep_only(self, bases: Collection[str]) -> None:
        for path in (self.folder / "weights").iterdir():
            if path.name.partition(".")[0] not in bases:
                path.unlink()

    def size(self, base: str) -> int:
        """Bytes."""
        return (self.folder / "weights" / base).stat().st_size

    def piece(self, path: str, start: int) -> bytes | None:
        """None for what is not here."""
        if not (self.folder / path).is_file():
            return None
        with (self.folder / path).open("rb") as file:
            file.seek(start)
            return file.read(PIECE)

    # -- updates that wait ---------------------------------------------------------------------------------------------

    def take_in(self, hash: str, data: bytes) -> None:
        write(self.folder / "updates" / hash, data)

    def update(self, hash: str) -> dict[str, NDArray[Any]]:
        """Its fields."""
        return self.pack.leaves.read((self.folder / "updates" / hash).read_bytes())[1]

    def drop(self, hash: str) -> None:
        (self.folder / "updates" / hash).unlink(missing_ok=True)

    def drop_all(self) -> None:
        for path in (self.folder / "updates").iterdir():
            path.unlink()

    # -- for people ----------------------------------------------------------------------------------------------------

    def note(self, site: str, round: int, why: str) -> None:
        """That nothing of this site was taken. A disk that is full does not stand in the way of saying so."""
        entry = {"at": time.time(), "site": site, "round": round, "why": why}
        with contextlib.suppress(OSError), (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def is_stopped(self) -> bool:
        return (self.folder / "stopped").exists()

    def stop(self, why: str) -> None:
        write(self.folder / "stopped", why.encode())

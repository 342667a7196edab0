"""What a site keeps of a run for itself: tentative until the update that it came with has counted."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from konvoi.sites.protocol import Facts, hash_of
from konvoi.state.journal import write


class Tentative:
    """In the run's folder: `own` as it was agreed last, `own.new` for the update in `pending.frame`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / "own"

    def attempt(self) -> Path:
        """A folder for one training. Each has its own, as a process of an agent that was killed may still write."""
        for old in self.folder.glob("attempt-*"):
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="attempt-", dir=self.folder))

    def keep(self, own: Path, round: int, base: str, frame: bytes) -> None:
        """An update is about to leave, and this is what goes with it."""
        own.replace(self.folder / "own.new")
        write(self.folder / "pending.frame", frame)
        told = {"round": round, "base": base, "hash": hash_of(frame)}
        write(self.folder / "pending.json", json.dumps(told).encode())

    def frame(self, base: str) -> bytes | None:
        """The update that was made from these weights: what is asked for again is answered with the same bytes."""
        pending = self._pending()
        return (self.folder / "pending.frame").read_bytes() if pending and pending["base"] == base else None

    def settle(self, facts: Facts, *, at_once: bool) -> int | None:
        """What was kept holds if its update has counted, and is forgotten if it never will. Returns the round that has
        counted. `at_once`: an update is kept there for later rounds."""
        pending = self._pending()
        if pending is None:
            return None
        has_counted = facts.counted == pending["hash"]
        if not has_counted and (facts.base == pending["base"] or (at_once and not facts.wanted)):
            return None
        if has_counted and (self.folder / "own.new").exists():  # else a kill came between this and what is below
            (self.folder / "own.new").replace(self.own)
        for name in ("pending.json", "pending.frame", "own.new"):
            (self.folder / name).unlink(missing_ok=True)
        return int(pending["round"]) if has_counted else None

    def _pending(self) -> dict[str, Any] | None:
        path = self.folder / "pending.json"
        return json.loads(path.read_text()) if path.exists() else None

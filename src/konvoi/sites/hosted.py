"""A run on the server: the machine of its rounds, with a disk.

What a decision comes to is on disk before the decision is, and the decision before anybody hears of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import MessageRefused, StateError
from konvoi.plan.sync import served
from konvoi.plan.sync.serving import (
    AddUp,
    Asked,
    Came,
    Event,
    Gone,
    Looked,
    Made,
    Over,
    Present,
    Refuse,
    Terms,
    Update,
    Write,
    plain,
    written,
)
from konvoi.security import pack as packs
from konvoi.sites.adding import Agreed, Learnt, mean_of
from konvoi.sites.protocol import DOING, ERRORS, IS_READY, PIECE, TRAINS, Facts, Started, convoy_of, hash_of, vector
from konvoi.sites.surveying import Surveyed
from konvoi.state.journal import append, lines, sync, write

AWAY_S = 30.0


class Hosted:
    """Called from the threads of the desk; every call is whole before the next."""

    def __init__(
        self,
        folder: Path,
        members: Callable[[], tuple[str, ...]],
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`members`: of the federation, now. Raises: StateError."""
        self.folder, self.members, self.say, self.clock = folder, members, say, clock
        try:
            self.run = Started(**json.loads((folder / "run.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise StateError("this run cannot be read", found=f"{folder}: {error}") from None
        self.pack, self.signer = packs.read(folder / "pack")
        self.plan = plan = convoy_of(self.pack.plan, self.run.settings)
        self.lock = threading.RLock()
        for name in ("weights", "updates"):
            (folder / name).mkdir(exist_ok=True)
        entries = self.history()
        first = self._first()
        terms = Terms(
            rounds=plan.rounds,
            first=self.run.first,
            cohort=plan.cohort,
            least=self.run.least,
            quorum=plan.quorum,
            deadline_s=plan.deadline_s,
            patience_s=plan.patience_s,
            away_s=AWAY_S,
            at_once=plan.at_once,
            max_staleness=plan.max_staleness,
        )
        self.state = served.restart(terms, first, tuple(map(written, entries)))
        self.agreed = self._agreed()
        self.figures: dict[str, Mapping[str, NDArray[Any]]] = {}  # of updates that wait, by hash
        self.refused: dict[str, str] = {}  # why each site's last update was not taken
        self.doing: dict[str, int] = {}
        self.best, self.best_loss = "", float("inf")
        for entry in entries:
            self._judge(entry["base"], entry["told"])

    def _first(self) -> str:
        data = packs.initial(self.folder / "pack", self.pack)
        assert self.plan.local is not None
        if self.plan.local.controls:
            data += bytes(len(data))  # that begin with zeros
        base = hash_of(data)
        if not (self.folder / "weights" / base).exists():
            write(self.folder / "weights" / base, data)
        return base

    def _agreed(self) -> Agreed | Surveyed:
        """As the newest decision has it."""
        path = self.folder / "weights" / self.state.base
        if self.pack.kind == "survey":
            return Surveyed(path.read_bytes())
        outer = path.with_name(f"{path.name}.outer")
        row = np.frombuffer(path.read_bytes(), "<f4")
        return Agreed(self.plan, row, outer.read_bytes() if outer.exists() else None)

    def history(self) -> list[dict[str, Any]]:
        """Every decision, the oldest first; a half-written one had not been told to anybody."""
        return [json.loads(line) for line in lines(self.folder / "decisions.jsonl")]

    # -- what sites say ------------------------------------------------------------------------------------------------

    def word(self, site: str, doing: int, entries: int) -> Facts:
        """A site is here; `entries`: of the roster. Returns what it is told."""
        with self.lock:
            self.doing[site] = doing
            if doing in (IS_READY, TRAINS):
                self._do(Present(site, self.clock()))
            elif site in self.state.seen:
                self._do(Gone(site))
            state, last = self.state, self.state.last.get(site)
            return Facts(
                self.run,
                self.status,
                state.round,
                self.plan.rounds,
                state.base,
                (self.folder / "weights" / state.base).stat().st_size,
                state.cohort,
                not self.is_over and state.wants(site),
                last.hash if last is not None else "",
                self.refused.get(site, ""),
                entries,
            )

    def update(self, site: str, data: bytes) -> None:
        """Raises: MessageRefused, with what is wrong."""
        with self.lock:
            _, found = self.pack.leaves.read(data)
            if self.is_over:
                self._refuse(site, "the run is over")
            if int(found["round"]) != self.state.round and not self.plan.at_once:
                self._refuse(site, "its round is decided")
            if "samples" in found and not found["samples"]:
                self._refuse(site, "it says that it learnt from nothing")
            most = self.pack.ranges.get("samples", (0, float("inf")))[1]
            weight = min(float(found.get("samples", 1)), most)
            update = Update(site, found["base"].tobytes().hex(), hash_of(data), weight)
            write(self.folder / "updates" / update.hash, data)
            self.figures[update.hash] = {
                name: found[name] for name in ("loss", "valid_loss", "valid_samples") if name in found
            }
            self.refused.pop(site, None)
            self._do(Came(update, self.clock()))
            if site in self.refused:
                raise MessageRefused(self.refused[site], found=f"{site}, round {int(found['round'])}")

    def failed(self, site: str, code: int) -> None:
        with self.lock:
            self._note(site, ERRORS.get(code, "an error that has no name here"))

    def gone(self, site: str) -> None:
        """It has left, or was revoked: what it has sent for this round does not count."""
        with self.lock:
            if site in self.state.seen or site in self.state.came:
                self.say(f"{self.run.id}: {site} is no longer of this run")
            self._do(Gone(site))

    def look(self) -> None:
        with self.lock:
            self._do(Looked(self.clock()))

    def piece(self, hash: str, start: int) -> bytes | None:
        """Of agreed weights, or the pack; None for what is not here."""
        path = self.folder / "pack" if hash == self.run.pack else self.folder / "weights" / hash
        if not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(start)
            return file.read(PIECE)

    # -- how it stands -------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self.state.is_over or (self.folder / "stopped").exists()

    @property
    def status(self) -> str:
        if self.is_over:
            return "over" if self.state.is_over else "stopped"
        return "runs" if self.state.begun else "waits"

    def doing_of(self, site: str) -> str:
        """For a person."""
        doing = self.doing.get(site, len(DOING))
        why = f"; its last update: {self.refused[site]}" if site in self.refused else ""
        sent = ", has sent its update" if site in self.state.came else ""
        return (DOING[doing] if doing < len(DOING) else "does something unknown") + sent + why

    def stop(self, why: str) -> None:
        """No round is decided any more."""
        write(self.folder / "stopped", why.encode())
        self.say(f"{self.run.id}: {why}")

    # -- the machine's actions -----------------------------------------------------------------------------------------

    def _do(self, event: Event) -> None:
        if self.is_over:
            return
        self.state, actions = served.advance(self.state, event)
        for action in actions:
            if isinstance(action, AddUp):
                self._do(Made(action.round, self._add_up(action), self.clock()))
            elif isinstance(action, Write):
                self._write(action)
            elif isinstance(action, Asked):
                again = f", once more: {action.attempt}" if action.attempt else ""
                self.say(f"{self.run.id}: round {action.round} asks {', '.join(action.cohort)}{again}")
            elif isinstance(action, Refuse):
                self._note(action.update.site, action.why)
            elif isinstance(action, Over):
                self.say(f"{self.run.id}: over after {self.plan.rounds} rounds")

    def _add_up(self, action: AddUp) -> str:
        path, listed = self.folder / "updates", self.pack.leaves
        found = [(one, listed.read((path / one.update.hash).read_bytes())[1]) for one in action.updates]
        if isinstance(self.agreed, Surveyed):
            self.agreed.take([fields for _, fields in found])
        else:
            updates = []
            for one, fields in found:
                move, control = vector(listed, fields, "move"), vector(listed, fields, "control")
                updates.append(Learnt(move, control, one.update.weight, one.staleness))
            self.agreed.take(updates, len(self.members()))
        data, beside = self.agreed.as_bytes()
        base = hash_of(data)
        write(self.folder / "weights" / f"{base}.outer", beside)
        write(self.folder / "weights" / base, data)
        return base

    def _write(self, decision: Write) -> None:
        hashes = [one.update.hash for one in decision.updates]
        figures = [self.figures.pop(hash, {}) for hash in hashes]
        told: dict[str, Any] = {**mean_of(figures, [one.update.weight for one in decision.updates])}
        if "valid_loss" in told:  # how unlike sites are
            by_site = zip(decision.updates, figures, strict=True)
            told["valid_by_site"] = {one.update.site: float(found["valid_loss"]) for one, found in by_site}
        entry = plain(decision) | {"at": time.time(), "told": told}
        append(self.folder / "decisions.jsonl", json.dumps(entry).encode())
        sync(self.folder)
        self._judge(decision.base, told)
        self._tidy(decision)
        loss = f", loss {told['loss']:.4f}" if "loss" in told else ""
        self.say(f"{self.run.id}: round {decision.round} is decided by {len(hashes)} sites{loss}")
        patience = int(self.run.settings.get("patience", 0))
        worse = 0 if self.best in ("", decision.base) else self._rounds_since_best()
        if patience and worse >= patience:
            self.stop(f"early stopping: no better than after round {decision.round - worse - 1} for {worse} rounds")

    def _judge(self, base: str, told: Mapping[str, Any]) -> None:
        """What sites say of weights on samples that they keep for evaluation is of those that they began with."""
        if told.get("valid_loss", self.best_loss) < self.best_loss:
            self.best, self.best_loss = base, told["valid_loss"]

    def _rounds_since_best(self) -> int:
        bases = [entry["base"] for entry in self.history()]
        return len(bases) - 1 - bases.index(self.best) if self.best in bases else 0

    def _tidy(self, decision: Write) -> None:
        keep = {decision.base, decision.result, self.best}
        for path in (self.folder / "weights").iterdir():
            if path.name.partition(".")[0] not in keep:
                path.unlink()
        waiting = {one.update.hash for one in self.state.came.values()} - {one.update.hash for one in decision.updates}
        for path in (self.folder / "updates").iterdir():
            if path.name not in waiting:
                path.unlink()

    def _note(self, site: str, why: str) -> None:
        self.refused[site] = why
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), "site": site, "round": self.state.round, "why": why}) + "\n")
        self.say(f"{self.run.id}: nothing of {site} in round {self.state.round}: {why}")

    def _refuse(self, site: str, why: str) -> None:
        self._note(site, why)
        raise MessageRefused(why, found=f"{site}, round {self.state.round}")

"""A run on the server: the machine of its rounds, with a disk.

What a decision comes to is on disk before the decision is, and the decision before anybody hears of it, this object's
own state included: what a full disk has cut short is read from there again, as by a server that was killed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from konvoi.errors import KonvoiError, MessageRefused, StateError
from konvoi.plan.sync import served
from konvoi.plan.sync.serving import (
    Action,
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
from konvoi.sites.adding import Best, Learnt, told_by
from konvoi.sites.disk import Disk
from konvoi.sites.protocol import DOING, ERRORS, HOLDS, TAKE_PART, VALID, Facts, Started, convoy_of, hash_of, vector
from konvoi.sites.surveying import Surveyed

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
        """`members`: of the federation, now. Raises: StateError, PlanError."""
        self.folder, self.members, self.say, self.clock = folder, members, say, clock
        self.lock = threading.RLock()
        self.refused: dict[str, str] = {}  # why each site's last update was not taken
        self.doing: dict[str, int] = {}
        self.is_torn, self._failing = False, ""  # whether the disk failed in mid-event, and what was said of it
        try:
            self._open()
        except KonvoiError:
            raise
        except Exception as error:  # whatever a damaged file comes to
            raise StateError("this run cannot be read", found=f"{folder}: {error!r}") from error

    def _open(self) -> None:
        self.run = Started(**json.loads((self.folder / "run.json").read_text()))
        self.pack, self.signer = packs.read(self.folder / "pack")
        self.plan = plan = convoy_of(self.pack.plan, self.run.settings)
        allowed = self.pack.ranges.get("samples", (0.0, float("inf")))[1]
        self.most = float(self.run.settings.get("samples", allowed))  # that a site may say it has
        self.disk = Disk(self.folder, self.pack, plan)
        self.first = self.disk.first()
        self.terms = Terms(
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
        self._read()

    def _read(self) -> None:
        """All is as the disk has it; updates that waited are sent again."""
        entries = self.history()
        state = served.restart(self.terms, self.first, tuple(map(written, entries)))
        self.agreed = self.disk.agreed(state.base)
        self.disk.drop_all()
        self.state = state
        self.figures: dict[str, dict[str, float]] = {}  # of updates that wait, by hash
        self.best = Best()
        for entry in entries:
            self.best.judge(entry["base"], entry["told"])

    def history(self) -> list[dict[str, Any]]:
        return self.disk.history()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One call after the other, each from what is on disk. Raises: StateError where the disk fails."""
        with self.lock:
            try:
                if self.is_torn:
                    self._read()
                    self.is_torn = False
                yield
            except OSError as error:
                self._complain(str(error))
                raise StateError("the server's disk fails", found=error.strerror) from error

    def _complain(self, text: str) -> None:
        if text != self._failing:  # sites try again and again
            self.say(f"{self.run.id}: the disk fails: {text}")
        self._failing = text

    # -- what sites say ------------------------------------------------------------------------------------------------

    def word(self, site: str, doing: int, entries: int) -> Facts:
        """A site is here; `entries`: of the roster. Returns what it is told. Raises: StateError."""
        with self._in_turn():
            self.doing[site] = doing
            if doing in TAKE_PART:
                self._do(Present(site, self.clock(), holds=doing == HOLDS))
            elif site in self.state.seen:
                self._do(Gone(site))
            state, last = self.state, self.state.last.get(site)
            return Facts(
                self.run,
                self.status,
                state.round,
                self.plan.rounds,
                state.base,
                self.disk.size(state.base),
                state.cohort,
                not self.is_over and state.wants(site),
                last.hash if last is not None else "",
                self.refused.get(site, ""),
                entries,
            )

    def update(self, site: str, data: bytes) -> None:
        """Raises: MessageRefused, with what is wrong; StateError."""
        with self._in_turn():
            _, found = self.pack.leaves.read(data)
            samples = float(found.get("samples", 1))
            update = Update(site, found["base"].tobytes().hex(), hash_of(data), min(samples, self.most))
            if (why := self._why_not(update, found)) is not None:
                self._note(site, why)
                raise MessageRefused(why, found=f"{site}, round {int(found['round'])}")
            self.disk.take_in(update.hash, data)
            # Kept in mind until it is added up.
            figures = {name: float(found[name]) for name in found if name == "loss" or name.startswith(VALID)}
            if samples > self.most:
                figures["claimed"] = samples
                self.say(f"{self.run.id}: {site} says that it has {samples:,.0f} samples; {self.most:,.0f} count")
            if "valid_samples" in figures:
                figures["valid_samples"] = min(figures["valid_samples"], self.most)
            self.figures[update.hash] = figures
            self.refused.pop(site, None)
            self._do(Came(update, self.clock()))

    def _why_not(self, update: Update, found: Mapping[str, NDArray[Any]]) -> str | None:
        """Judged before anything of it is kept."""
        number = int(found["round"])
        if self.is_over:
            return "the run is over"
        if number != self.state.round and not self.plan.at_once:
            return "its round is decided" if number < self.state.round else "its round has not begun"
        if "samples" in found and not found["samples"]:
            return "it says that it learnt from nothing"
        return served.why_not(self.state, update)

    def failed(self, site: str, code: int, count: int) -> None:
        with self._in_turn():
            self._note(site, ERRORS.get(code, "an error that has no name here"), count)

    def gone(self, site: str) -> None:
        """It has left, or was revoked: what it has sent for this round does not count. Raises: StateError."""
        with self._in_turn():
            if site in self.state.seen or site in self.state.came:
                self.say(f"{self.run.id}: {site} is no longer of this run")
            self._do(Gone(site))

    def look(self) -> None:
        """Raises: StateError."""
        with self._in_turn():
            self._do(Looked(self.clock()))

    def piece(self, hash: str, start: int) -> bytes | None:
        """Of agreed weights, or the pack; None for what is not here."""
        return self.disk.piece("pack" if hash == self.run.pack else f"weights/{hash}", start)

    # -- how it stands -------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self.state.is_over or self.disk.is_stopped

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
        self.disk.stop(why)
        self.say(f"{self.run.id}: {why}")

    # -- the machine's actions -----------------------------------------------------------------------------------------

    def _do(self, event: Event) -> None:
        """Whoever raises in between leaves all to be read from the disk."""
        if self.is_over:
            return
        self.is_torn = True
        state, left = self.state, [event]
        said: list[Action] = []
        while left:
            state, actions = served.advance(state, left.pop(0))
            for action in actions:
                if isinstance(action, AddUp):
                    left.append(Made(action.round, self._add_up(action), self.clock()))
                elif isinstance(action, Write):
                    self._write(action)
                else:
                    said.append(action)
        self.state, self.is_torn = state, False
        self._forget()
        for action in said:
            self._say(action)

    def _say(self, action: Action) -> None:
        if isinstance(action, Asked):
            again = f", once more: {action.attempt}" if action.attempt else ""
            self.say(f"{self.run.id}: round {action.round} asks {', '.join(action.cohort)}{again}")
        elif isinstance(action, Refuse):
            self._note(action.update.site, action.why)
        elif isinstance(action, Over):
            self.say(f"{self.run.id}: over after {self.plan.rounds} rounds")

    def _add_up(self, action: AddUp) -> str:
        found = [(one, self.disk.update(one.update.hash)) for one in action.updates]
        if isinstance(self.agreed, Surveyed):
            self.agreed.take([fields for _, fields in found])
        else:
            updates, listed = [], self.pack.leaves
            for one, fields in found:
                move, control = vector(listed, fields, "move"), vector(listed, fields, "control")
                updates.append(Learnt(move, control, one.update.weight, one.staleness))
            self.agreed.take(updates, len(self.members()))
        return self.disk.keep(*self.agreed.as_bytes())

    def _write(self, decision: Write) -> None:
        told = told_by([one.update for one in decision.updates], self.figures)
        self.disk.decide(plain(decision) | {"at": time.time(), "told": told})
        self._failing = ""
        self.best.judge(decision.base, told)
        self.disk.keep_only({decision.base, decision.result, self.best.base})
        loss = f", loss {told['loss']:.4f}" if "loss" in told else ""
        self.say(f"{self.run.id}: round {decision.round} is decided by {len(decision.updates)} sites{loss}")
        patience, worse = int(self.run.settings.get("patience", 0)), self.best.worse
        if patience and self.best.base and worse >= patience:
            self.stop(f"early stopping: no better than after round {decision.round - worse - 1} for {worse} rounds")

    def _forget(self) -> None:
        """Of updates that were added up, or whose site is gone, nothing is kept."""
        waiting = {one.update.hash for one in self.state.came.values()}
        for hash in self.figures.keys() - waiting:
            del self.figures[hash]
            self.disk.drop(hash)

    def _note(self, site: str, why: str, count: int = 1) -> None:
        why += f" ({count:,} times)" if count > 1 else ""
        self.refused[site] = why
        self.disk.note(site, self.state.round, why)
        self.say(f"{self.run.id}: nothing of {site} in round {self.state.round}: {why}")

"""The server of a federation of sites: several runs, and who may say what to them. It runs no code of any pack."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from konvoi.errors import KonvoiError, MessageRefused, PlanError, StateError
from konvoi.plan.convoy import Convoy
from konvoi.security import pack as packs
from konvoi.security.leaving import KIND
from konvoi.security.roster import Roster
from konvoi.security.signing import as_told
from konvoi.sites.hosted import Hosted
from konvoi.sites.protocol import HASH, PROTOCOL, Started, as_json, convoy_of, outside
from konvoi.state.journal import write

SMALL = 1 << 16  # bytes of a frame that is no update
AGAIN_S = 60.0  # until a run is tried again that could not be read: a disk may have been full
HELD_S = 15.0  # an answer waits so long for something new; sites have to be heard more often than `hosted.AWAY_S`


class Hall:
    """Use with `with`; the folder is the federation's. Runs that are submitted meanwhile are found."""

    def __init__(
        self,
        folder: Path,
        roster: Roster,
        *,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        look_s: float = 0.2,
    ) -> None:
        self.folder, self.roster, self.say, self.clock, self.look_s = folder, roster, say, clock, look_s
        self.runs: dict[str, Hosted] = {}  # by hash
        self._looking = threading.Lock()
        self._next: dict[Path, float] = {}  # when a run that could not be read is tried again
        self._gone: dict[str, set[str]] = {}  # whom each run knows to be gone
        self._wrong: dict[str, str] = {}  # what has failed last, and was said; by run, or "" of all
        self.seen: dict[str, float] = {}  # by member
        self._last: dict[tuple[str, bytes], bytes] = {}  # what each site was told last, of each run
        self._news = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="konvoi-hall", daemon=True)

    def __enter__(self) -> Hall:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        """Something may be new."""
        with self._news:
            self._news.notify_all()

    # -- what sites say ------------------------------------------------------------------------------------------------

    def largest(self) -> int:
        return max([SMALL, *(run.pack.leaves.frame("update").size for run in self.runs.values() if not run.is_over)])

    def answer(self, member: str, frame: bytes) -> bytes:
        """Raises: MessageRefused, StateError."""
        kind = frame[:KIND].rstrip(b"\0")
        if kind == b"update":
            return self._update(member, frame[KIND : KIND + HASH], frame)
        name, found = PROTOCOL.read(frame)
        self.seen[member] = self.clock()
        if name == "get":
            return self._piece(found["what"].tobytes().hex(), int(found["start"]))
        run = found["run"].tobytes()
        if name == "error":
            self._run(run.hex()).failed(member, int(found["code"]), int(found["count"]))
            return b"{}"
        return self._word(member, run, int(found["doing"]), HELD_S if found["waits"] else 0.0)

    def _update(self, member: str, run: bytes, frame: bytes) -> bytes:
        try:
            self._run(run.hex()).update(member, frame)
        except StateError:  # it has to be sent again: what the site is told next is news, though it is the same
            self._last.pop((member, run), None)
            raise
        self._tell()
        return b"{}"

    def _word(self, member: str, run: bytes, doing: int, held_s: float) -> bytes:
        """What a site is told, as soon as it is other than what it was told last."""
        until = time.monotonic() + held_s
        while True:
            told = self._told(member, run, doing)
            is_new = self._last.get((member, run)) != told
            left = until - time.monotonic()
            if is_new or left <= 0 or self._over.is_set():
                self._last[member, run] = told
                return told
            with self._news:
                self._news.wait(min(left, 1.0))

    def _told(self, member: str, run: bytes, doing: int) -> bytes:
        if any(run):
            return as_json(self._run(run.hex()).word(member, doing, self.roster.entries))
        return json.dumps({"runs": self._runs(), "roster": self._roster()}).encode()

    def _run(self, hash: str) -> Hosted:
        if hash not in self.runs:
            raise MessageRefused("there is no such run", found=hash[:12])
        return self.runs[hash]

    def _piece(self, hash: str, start: int) -> bytes:
        for run in self.runs.values():
            if (data := run.piece(hash, start)) is not None:
                return data
        raise MessageRefused("this is not here, or not any more", found=hash[:12])

    def _runs(self) -> list[dict[str, Any]]:
        return [{"hash": hash, **asdict(run.run), "state": run.status} for hash, run in self.runs.items()]

    def _roster(self) -> list[dict[str, Any]]:
        """Its versions, as their signers have signed them: sites go on from those that they hold."""
        with self.roster.lock:
            return as_told(self.roster.signing.versions) if self.roster.signing is not None else []

    # -- what happens without them -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find runs that were submitted or stopped, members that went, and rounds whose time has come.

        Raises: StateError for a roster that cannot be read.
        """
        with self._looking:
            self._find()
            self.roster.refresh()
            gone = {*self.roster.revoked, *self.roster.left}
            for run in self.runs.values():
                self._guarded(run.run.id, self._see_to, run, gone)
        self._tell()

    def _find(self) -> None:
        for path in sorted((self.folder / "runs").glob("*/run.json")):
            if self.clock() >= self._next.get(path, -math.inf):
                is_here = self._guarded(path.parent.name, self._add, path.parent)
                self._next[path] = math.inf if is_here else self.clock() + AGAIN_S

    def _guarded(self, name: str, call: Callable[..., None], *given: Any) -> bool:
        """Whether it went well: what is wrong with one run is said once, and hinders no other."""
        try:
            call(*given)
        except Exception as error:
            self._complain(name, error)
            return False
        self._wrong.pop(name, None)
        return True

    def _complain(self, name: str, error: Exception) -> None:
        text = str(error) if isinstance(error, KonvoiError) else repr(error)
        if self._wrong.get(name) != text:
            self.say(f"{name} cannot go on: {text}" if name else text)
        self._wrong[name] = text

    def _add(self, folder: Path) -> None:
        run = Hosted(folder, self.roster.sites, self.say, self.clock)
        self.runs = {**self.runs, run.run.hash: run}  # other threads go through the old one
        if not run.is_over:
            self.say(f"{run.run.id}: round {run.state.round} of {run.plan.rounds}, pack {run.run.pack[:12]}")

    def _see_to(self, run: Hosted, gone: set[str]) -> None:
        known = self._gone.get(run.run.hash, set())
        for site in gone - known:
            run.gone(site)
        self._gone[run.run.hash] = gone
        if (run.folder / "stop").exists() and not run.is_over:
            run.stop("stopped by whoever keeps the server")
        if not run.is_over:
            run.look()

    def _watch(self) -> None:
        while not self._over.wait(self.look_s):
            self._guarded("", self.look)

    def status(self) -> dict[str, Any]:
        """For people: when each site was heard last, and what it does in each run; and how the runs stand."""
        now = self.clock()
        runs = [
            {
                "run": run.run.id,
                "state": run.status,
                "round": min(run.state.round, run.plan.rounds),
                "rounds": run.plan.rounds,
                "sites": {site: run.doing_of(site) for site in sorted(run.doing)},
            }
            for run in self.runs.values()
        ]
        return {"sites": {site: {"seen_s": round(now - at, 1)} for site, at in sorted(self.seen.items())}, "runs": runs}


def submit(
    federation: Path, id: str, pack: Path, *, settings: dict[str, float], first: int = 2, least: int = 2
) -> Path:
    """A run of this pack begins, as soon as `first` sites that have approved it are there; a round takes the updates of
    at least `least`. Returns its folder. Raises: StateError, PlanError."""
    found, _ = packs.read(pack)
    if wrong := outside(settings, found.ranges):
        raise StateError("the pack does not allow these settings", found="; ".join(wrong))
    _check_ends(convoy_of(found.plan, settings), first, least, Roster.open(federation / "roster.jsonl"))
    folder = federation / "runs"
    names = {path.name for path in folder.glob("*")}
    number = next(n for n in range(1, len(names) + 2) if f"{found.name}-{n}" not in names)
    run = Started(id, f"{found.name}-{number}", found.hash, settings, first, least)
    (folder / run.id).mkdir(parents=True, mode=0o700)
    write(folder / run.id / "pack", pack.read_bytes())
    write(folder / run.id / "run.json", json.dumps(asdict(run), indent=1).encode())  # last: where it is, all is
    return folder / run.id


def _check_ends(plan: Convoy, first: int, least: int, roster: Roster) -> None:
    """Raises: PlanError for a round that would never be decided."""
    if min(first, least) < 1:
        raise PlanError("a run begins with a site, and a round has an update", found=f"first={first}, least={least}")
    if not plan.at_once and 0 < plan.cohort < least:
        raise PlanError(
            "a round would never have enough updates",
            found=f"a cohort of {plan.cohort}, and at least {least} updates",
            hint=f"--least {plan.cohort}, or a larger cohort",
        )
    may_come = {*roster.members, *roster.invited} - roster.left
    if plan.at_once > len(may_come):
        raise PlanError(
            "a round would never have enough updates, as one of each site waits",
            found=f"{plan.at_once} at once, of {len(may_come)} members and invited",
            hint="invite more, or a smaller buffer",
        )

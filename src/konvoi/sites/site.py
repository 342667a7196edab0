"""What runs at a site: it asks the server what there is to do, and does what a person here has agreed to."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konvoi.errors import KonvoiError, StateError
from konvoi.fleet.wire.dial import Dial, Inspected, Unreached
from konvoi.security import pack as packs
from konvoi.sites.gate import Gate, Kept
from konvoi.sites.house import House
from konvoi.sites.part import Part
from konvoi.sites.protocol import IS_READY, NOTHING, PROTOCOL, Started

LOOK_S = 0.2
FIRST_S, MOST_S, SLOW_S = 0.5, 5.0, 60.0  # between tries: they get rarer, the more so after an hour
HOUR_S = 3600.0


@dataclass(frozen=True)
class Here:
    """Who this site is, and what it has."""

    site: str
    federation: str
    federation_id: str
    authority: bytes  # PEM
    data: Path
    device: str = "cpu"
    threads: int = 0


class Site:
    """`run` until its event is set. A thread for each run that it takes part in."""

    def __init__(self, here: Here, house: House, dial: Dial, say: Callable[[str], None] = lambda text: None) -> None:
        self.here, self.house, self.say = here, house, say
        self.gate = Gate(house, dial, here.federation)
        self.parts: dict[str, Part] = {}  # by the run's hash
        self._said: set[str] = set()
        self._runs: list[dict[str, Any]] = []  # as the server has told last
        self._wrong: StateError | None = None
        self._over = threading.Event()

    def run(self, until: threading.Event) -> None:
        """Until then, or until this site leaves. Raises: StateError where the server is not to be trusted."""
        asking = threading.Thread(target=self._ask_on, name="konvoi-site", daemon=True)
        asking.start()
        try:
            while not until.wait(LOOK_S) and not self.house.has_left:
                if self._wrong is not None:
                    raise self._wrong
                if self.house.is_paused:
                    self._pause(until)
                for told in self._runs:
                    self._see_to(told)
        finally:
            self._over.set()
            for part in self.parts.values():
                part.end()

    def _pause(self, until: threading.Event) -> None:
        self.say("paused: nothing leaves, until `konvoi federation resume`")
        for part in self.parts.values():
            part.end()
        self.parts.clear()
        while self.house.is_paused and not self.house.has_left and not until.wait(LOOK_S):
            pass

    # -- what there is to do: asked in a thread of its own, as an answer may be long in coming -------------------------

    def _ask_on(self) -> None:
        failed_at, is_first, wait_s = 0.0, True, FIRST_S
        while not self._over.is_set() and not self.house.has_left:
            values = {"run": NOTHING, "doing": IS_READY, "waits": int(not is_first)}
            try:
                told = json.loads(self.gate.send(PROTOCOL, "ask", values))
                self.house.take_roster(told["roster"], self.here.authority)
                for one in told["runs"]:
                    self._check(one)
                self._runs = told["runs"]
            except Kept:
                is_first = True
                self._over.wait(LOOK_S)
            except (Unreached, Inspected) as error:
                self.say_once(f"{error.message}; trying again ({error.found})")
                failed_at, is_first = failed_at or time.monotonic(), True
                self._over.wait(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, MOST_S if time.monotonic() - failed_at < HOUR_S else SLOW_S)
            except StateError as error:
                self._wrong = error
                return
            except KonvoiError as error:  # revoked, or a server that fails: a person should know
                self.say_once(f"the server says: {error.message}")
                self._over.wait(MOST_S)
            else:
                if failed_at:
                    self._said.clear()
                    self.say("the server answers again")
                failed_at, is_first, wait_s = 0.0, False, FIRST_S

    def _check(self, told: Mapping[str, Any]) -> None:
        """It is what it is called, and its pack is here. Raises: StateError."""
        run = _run(told)
        if told["hash"] != run.hash or run.federation != self.here.federation_id:
            raise StateError("the server shows a run that is not what it is called", found=str(told["id"])[:60])
        if not self.house.path_of(run.pack).exists():
            self._fetch(run)

    def _fetch(self, run: Started) -> None:
        into = self.house.folder / "packs" / "new"
        self.gate.fetch(run.pack, into, run=run.id)
        pack, _ = self.house.take_in(into)
        into.unlink()
        if pack.hash != run.pack:
            raise StateError("the server's pack is not the one of this run", found=pack.hash, expected=run.pack)

    # -- and done, where a person here has agreed to it ----------------------------------------------------------------

    def _see_to(self, told: Mapping[str, Any]) -> None:
        run, hash = _run(told), str(told["hash"])
        part = self.parts.get(hash)
        if told["state"] in ("over", "stopped"):
            if part is not None:
                self.say_once(f"{run.id} is {told['state']}")
            return
        if part is not None and (part.is_alive() or part.is_done):
            return
        if run.pack not in self.house.approved():
            self.say_once(f"{run.id} waits for a person here: konvoi federation review {run.pack[:12]}")
            return
        pack, signer = packs.read(self.house.path_of(run.pack))
        self.parts[hash] = Part(run, pack, signer, self.here, self.house, self.gate, self.say)
        self.parts[hash].start()

    def say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)


def _run(told: Mapping[str, Any]) -> Started:
    return Started(**{name: told[name] for name in Started.__dataclass_fields__})

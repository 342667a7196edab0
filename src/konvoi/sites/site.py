"""What runs at a site: it asks the server what there is to do, and does what a person here has agreed to."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konvoi.errors import DiskFull, KonvoiError, MessageRefused, StateError
from konvoi.fleet.wire.dial import Dial, Said
from konvoi.security import pack as packs
from konvoi.sites import fetching
from konvoi.sites.answers import object_of, started_of
from konvoi.sites.gate import Gate, Kept
from konvoi.sites.house import House
from konvoi.sites.part import Part
from konvoi.sites.protocol import ENDED, IS_READY, NOTHING, PROTOCOL, Started, convoy_of, outside

LOOK_S = 0.2
FIRST_S, MOST_S, SLOW_S = 0.5, 5.0, 60.0  # between tries: they get rarer, the more so after an hour
HOUR_S = 3600.0


@dataclass(frozen=True)
class Here:
    """Who this site is, and what it has."""

    site: str
    federation: str
    federation_id: str
    founding: str  # hash of the roster's first version; "": this site is a founder
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
        self._runs: list[tuple[Started, str]] = []  # and their states, as the server has told last
        self._not_before: dict[str, float] = {}  # when each run is looked at again, by its hash
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
                for run, state in self._runs:
                    self._see_to(run, state)
        finally:
            self._over.set()
            for part in self.parts.values():
                part.end()

    def _pause(self, until: threading.Event) -> None:
        self.say("paused: nothing leaves, until `konvoi federation resume`")
        for part in self.parts.values():
            part.end()
        self.parts.clear()
        self._not_before.clear()
        while self.house.is_paused and not self.house.has_left and not until.wait(LOOK_S):
            pass

    # -- what there is to do: asked in a thread of its own, as an answer may be long in coming -------------------------

    def _ask_on(self) -> None:
        failed_at, is_first, wait_s = 0.0, True, FIRST_S
        while not self._over.is_set() and not self.house.has_left:
            try:
                self._ask(waits=not is_first)
            except Kept:
                is_first = True
                self._over.wait(LOOK_S)
            except Exception as error:  # whatever a server says, this site goes on asking
                if isinstance(error, StateError) and not isinstance(error, DiskFull):
                    self._wrong = error
                    return
                self._tell(error)
                failed_at, is_first = failed_at or time.monotonic(), True
                self._over.wait(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, MOST_S if time.monotonic() - failed_at < HOUR_S else SLOW_S)
            else:
                if failed_at:
                    self._said.clear()
                    self.say("the server answers again")
                failed_at, is_first, wait_s = 0.0, False, FIRST_S

    def _ask(self, *, waits: bool) -> None:
        held = len(self.house.versions())
        values = {"run": NOTHING, "doing": IS_READY, "waits": int(waits)}
        told = object_of(self.gate.send(PROTOCOL, "ask", values))
        self.house.take_roster(told["roster"], self.here.founding, held)
        runs: list[tuple[Started, str]] = []
        refused: MessageRefused | None = None
        for one in told["runs"]:
            try:
                runs.append(self._checked(one))
            except MessageRefused as error:  # one that is wrong does not keep the others away
                refused = error
        self._runs = runs
        if refused is not None:
            raise refused

    def _tell(self, error: Exception) -> None:
        if isinstance(error, Said):  # revoked, or a server that fails: a person should know
            self.say_once(f"the server says: {error.message}")
        elif isinstance(error, KonvoiError):
            self.say_once(f"{error.message}; trying again ({error.found})")
        else:
            self.say_once(f"an answer of the server makes no sense; trying again ({error!r:.100})")
            self.house.log("".join(traceback.format_exception(error)))

    def _checked(self, told: Mapping[str, Any]) -> tuple[Started, str]:
        """It is what it is called, and its pack is here. Raises: MessageRefused, StateError; as `Gate.send`."""
        run, state = started_of(told), str(told["state"])
        if told["hash"] != run.hash or run.federation != self.here.federation_id:
            raise StateError("the server shows a run that is not what it is called", found=run.id)
        if state not in ENDED and not self.house.path_of(run.pack).exists():
            fetching.pack(self.gate, self.house, run)
        return run, state

    # -- and done, where a person here has agreed to it ----------------------------------------------------------------

    def _see_to(self, run: Started, state: str) -> None:
        part = self.parts.get(run.hash)
        if state in ENDED:
            if part is not None:
                self.say_once(f"{run.id} is {state}")
            return
        is_taken_care_of = part is not None and (part.is_alive() or part.is_done)
        if is_taken_care_of or time.monotonic() < self._not_before.get(run.hash, 0.0):
            return
        try:
            self._begin(run)
        except Exception as error:  # a full disk, a pack that is damaged here
            self._not_before[run.hash] = time.monotonic() + MOST_S
            self.say_once(f"{run.id} cannot be begun ({error!r:.100}); why stands in {self.house.folder / 'log.txt'}")
            self.house.log(traceback.format_exc())

    def _begin(self, run: Started) -> None:
        if run.pack not in self.house.approved():
            self.say_once(f"{run.id} waits for a person here: konvoi federation review {run.pack[:12]}")
            return
        self._not_before[run.hash] = time.monotonic() + MOST_S  # should it end by itself
        pack, signer = packs.read(self.house.path_of(run.pack))
        is_within = not outside(run.settings, pack.ranges)  # else its part says what is wrong, and does nothing
        if is_within and not self.house.join(pack, run.hash, run.id, convoy_of(pack.plan, run.settings).rounds):
            again = f"the rounds of {pack.name} that were agreed to are other runs': konvoi federation approve"
            self.say_once(f"{run.id} waits for a person here, as {again} {run.pack[:12]}")
            self._not_before[run.hash] = time.monotonic() + FIRST_S
            return
        self.parts[run.hash] = Part(run, pack, signer, self.here, self.house, self.gate, self.say)
        self.parts[run.hash].start()

    def say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

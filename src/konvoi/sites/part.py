"""A site's part in one run: its rounds, one after the other, within what the pack and the site's own limits allow."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import KonvoiError, MessageRefused
from konvoi.fleet.wire.dial import Inspected, Said, Unreached
from konvoi.security import pack as packs
from konvoi.security.pack import Pack
from konvoi.sites import fetching
from konvoi.sites.answers import facts_of, object_of
from konvoi.sites.finetuning import finetune
from konvoi.sites.gate import Gate, Kept
from konvoi.sites.house import House
from konvoi.sites.orders import Order, Told
from konvoi.sites.process import Process
from konvoi.sites.protocol import (
    ENDED,
    ERRORS,
    HOLDS,
    IS_READY,
    LIMITS,
    NOT_FINITE,
    PROTOCOL,
    REFUSES,
    TRAINING,
    TRAINS,
    Facts,
    Started,
)
from konvoi.sites.refusing import forbidden
from konvoi.sites.tentative import Tentative
from konvoi.sites.updating import values_of
from konvoi.state.journal import write

if TYPE_CHECKING:
    from konvoi.sites.site import Here

BEAT_S, LOOK_S = 8.0, 0.2  # between words while it trains; and at the latest until one that something else is done
AGAIN_S, RARELY_S = 1.0, 300.0  # between tries, which get rarer


class NoUpdate(Exception):
    """There is none for this round; what may be told of why is a code."""

    def __init__(self, code: int) -> None:
        super().__init__(ERRORS[code])
        self.code = code


class Part(threading.Thread):
    """Goes on whatever fails, here or at the server, and tries more rarely then."""

    def __init__(
        self, run: Started, pack: Pack, signer: str, here: Here, house: House, gate: Gate, say: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"konvoi-{run.id}", daemon=True)
        self.run_, self.pack, self.signer, self.here, self.house, self.gate = run, pack, signer, here, house, gate
        self._say = say
        self.hash, self.folder = run.hash, house.run_folder(run.hash)
        self.kept = Tentative(self.folder)
        recipe, frozen = pack.unpack(self.folder / "sources"), self.folder / "frozen.safetensors"
        if pack.frozen and not frozen.exists():
            write(frozen, packs.frozen(house.path_of(pack.hash), pack))
        told = Told(
            str(recipe.resolve()),
            pack.overrides,
            pack.plan,
            pack.spec,
            str(here.data),
            here.site,
            here.device,
            here.threads,
            pack.kind,
            str(frozen.resolve()) if pack.frozen else "",
            pack.statistics,
        )
        self.process = Process(told, self.folder)
        self._over = threading.Event()
        self._is_first, self._refused = True, ""
        self._failed = 0  # times in a row
        self._untold = Counter[int]()  # times that the server has not heard of, by code
        self._doing = IS_READY
        self._newest: Facts | None = None  # that was heard beside a training
        self.is_done = False

    def say(self, text: str) -> None:
        self._say(f"{self.run_.id}: {text}")

    def end(self) -> None:
        """At once; what was trained for is trained again by whoever comes back."""
        self._over.set()
        self.process.end()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._over.wait(self._try())
        finally:
            self.process.end()

    # -- what may go wrong ---------------------------------------------------------------------------------------------

    def _try(self) -> float:
        """A turn. Returns how long to wait for the next."""
        try:
            self._turn()
            return 0.0
        except (Unreached, Inspected):  # the site's own thread tells about it
            wait_s = AGAIN_S
        except Said as error:
            self.say(f"the server says: {_in_a_line(error)}")
            wait_s = AGAIN_S
        except Kept as error:
            if not self.house.is_paused and not self._over.is_set():
                self._refuse(_in_a_line(error))
            wait_s = self._more_rarely()
        except KonvoiError as error:
            self.say(_in_a_line(error))
            wait_s = self._more_rarely()
        except Exception as error:  # a full disk, a recipe's answer that is none, a fault of this program
            code = error.code if isinstance(error, NoUpdate) else TRAINING
            self.say(f"no update: {ERRORS[code]}; why stands in {self.folder / 'log.txt'}")
            self.house.log(traceback.format_exc(), self.hash)
            self._tell(code)
            wait_s = self._more_rarely()
        self._is_first = True
        return wait_s

    def _more_rarely(self) -> float:
        wait_s = min(AGAIN_S * (1 << min(self._failed, 20)), RARELY_S)
        self._failed += 1
        return wait_s

    def _refuse(self, why: str) -> None:
        if why != self._refused:
            self._refused = why
            self.say(f"this site takes no part: {why}")
            self._tell(LIMITS)

    def _tell(self, code: int) -> None:
        """A number, and how often: the server may have been away."""
        self._untold[code] += 1
        with contextlib.suppress(KonvoiError, OSError):  # a person here knows
            self._send("error", {"run": bytes.fromhex(self.hash), "code": code, "count": self._untold[code]})
            del self._untold[code]

    # -- a round -------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        facts = self._ask(IS_READY, waits=not self._is_first)
        self._is_first = False
        if self._over.is_set():  # another may have this run by now
            return
        if facts.state not in ENDED and (why := self._forbidden(facts)):
            self._refuse("; ".join(why))
            self._ask(REFUSES, waits=True)
            self._over.wait(AGAIN_S)  # that a site is there and then refuses is news to it, which it answers at once
            return
        counted = self.kept.settle(facts, at_once=self._is_at_once)
        if counted is not None:
            self.say(f"its update for round {counted} has counted")
        if facts.state in ENDED:
            finetune(self, facts)
            self.is_done = True
            self._over.set()
        elif facts.wanted:
            self._train(facts)

    def _forbidden(self, facts: Facts) -> list[str]:
        return forbidden(facts, self.run_, self.pack, self.signer, self.house, self.here.site)

    @property
    def _is_at_once(self) -> bool:
        return bool(self.pack.plan.get("at_once"))

    def _ask(self, doing: int, *, waits: bool = False) -> Facts:
        values = {"run": bytes.fromhex(self.hash), "doing": doing, "waits": int(waits)}
        return facts_of(object_of(self._send("ask", values)))

    def _send(self, kind: str, values: Mapping[str, Any], is_over: Callable[[], bool] = lambda: False) -> bytes:
        listed = self.pack.leaves if kind == "update" else PROTOCOL
        return self.gate.send(listed, kind, values, run=self.run_.id, pack=self.pack.hash, is_over=is_over)

    def _train(self, facts: Facts) -> None:
        frame = self.kept.frame(facts.base) or self._learn(facts)
        if frame is None:
            return
        _, values = self.pack.leaves.read(frame)
        with self._heard(TRAINS, facts):
            try:
                self._send("update", values, lambda: self._is_too_late(facts))
            except Kept:
                if not self._is_past(facts):
                    raise
                self.say(f"nobody let its update for round {facts.round} go before that was decided")
                self._is_first = True  # what is new was told already, to the beat
        self._failed = 0

    def _learn(self, facts: Facts) -> bytes | None:
        tells = any(field.name == "valid_loss" for field in self.pack.leaves.frame("update").fields)
        attempt, order = self.attempt(facts, "out.npz", "own", evaluate=tells)
        self.say(f"trains for round {facts.round}")
        most_s = 60 * self.house.limits.max_minutes_per_round
        with self._heard(TRAINS, facts):
            result = self.process.train(order, most_s=most_s, is_over=self.has_to_end)
        if result is None:
            return None
        if result.code:
            raise NoUpdate(result.code if result.code in ERRORS else TRAINING)
        try:
            frame = self.pack.leaves.build(
                "update", values_of(self.pack, self.hash, facts, result, attempt / "out.npz")
            )
        except MessageRefused as error:  # the process looks at the moves; here all is looked at
            self.say(_in_a_line(error))
            raise NoUpdate(NOT_FINITE) from error
        self.kept.keep(attempt / "own", facts.round, facts.base, frame)
        return frame

    def attempt(
        self, facts: Facts, out: str, keep: str, *, evaluate: bool, finetune: bool = False
    ) -> tuple[Path, Order]:
        """A new folder, and what the process is asked to do from the server's weights and leave there, in two files."""
        weights = fetching.weights(self.gate, facts.base, self.folder / "weights", self.run_.id, self.pack)
        folder = self.kept.attempt()
        return folder, Order(
            round=facts.round,
            weights=str(weights.resolve()),
            own=str(self.kept.own.resolve()) if self.kept.own.exists() else "",
            out=str((folder / out).resolve()),
            keep=str((folder / keep).resolve()),
            settings={**self.run_.settings},
            evaluate=evaluate,
            finetune=finetune,
        )

    def has_to_end(self) -> bool:
        """A person's word, while it trains."""
        house = self.house
        return self._over.is_set() or house.is_paused or house.has_left or self.pack.hash not in house.approved()

    def _is_too_late(self, facts: Facts) -> bool:
        """Asked while its update is held."""
        self._doing = HOLDS
        return self._over.is_set() or self._is_past(facts)

    def _is_past(self, facts: Facts) -> bool:
        """Where nobody waits, an update is taken for later rounds too."""
        new = self._newest or facts
        return new.state in ENDED or (new.base != facts.base and not self._is_at_once)

    @contextlib.contextmanager
    def _heard(self, doing: int, facts: Facts) -> Iterator[None]:
        """Meanwhile the server hears now and then what this site does, and this site how the run stands."""
        self._doing, self._newest, done = doing, facts, threading.Event()

        def beat() -> None:
            said, at = doing, time.monotonic()
            while not done.wait(LOOK_S) and not self._over.is_set():
                if self._doing == said and time.monotonic() - at < BEAT_S:
                    continue
                said, at = self._doing, time.monotonic()
                with contextlib.suppress(KonvoiError, OSError):
                    self._newest = self._ask(said)

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()


def _in_a_line(error: KonvoiError) -> str:
    return f"{error.message}{f' ({error.found})' if error.found else ''}"

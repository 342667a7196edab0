"""A site's part in one run: its rounds, one after the other, within what the pack and the site's own limits allow."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from konvoi.errors import KonvoiError
from konvoi.fleet.wire.dial import Unreached
from konvoi.security.pack import Pack
from konvoi.sites.gate import Gate, Kept
from konvoi.sites.house import House
from konvoi.sites.orders import Order, Result, Told
from konvoi.sites.process import Process
from konvoi.sites.protocol import (
    IS_READY,
    LIMITS,
    PROTOCOL,
    REFUSES,
    TRAINS,
    Facts,
    Started,
    convoy_of,
    facts_of,
    fields,
    hash_of,
    outside,
)
from konvoi.state.journal import write

if TYPE_CHECKING:
    from konvoi.sites.site import Here

BEAT_S = 8.0  # between words while it trains
AGAIN_S, RARELY_S = 1.0, 300.0  # between tries, which get rarer


class Part(threading.Thread):
    """What it keeps of a run is tentative until its update has counted: `own.new` becomes `own`."""

    def __init__(
        self, run: Started, pack: Pack, signer: str, here: Here, house: House, gate: Gate, say: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"konvoi-{run.id}", daemon=True)
        self.run_, self.pack, self.signer, self.here, self.house, self.gate = run, pack, signer, here, house, gate
        self._say = say
        self.hash, self.folder = run.hash, house.run_folder(run.hash)
        recipe = pack.unpack(self.folder / "sources")
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
        )
        self.process = Process(told, self.folder)
        self._over = threading.Event()
        self._is_first, self._refused = True, ""
        self._failed = 0  # rounds in a row
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
                try:
                    self._turn()
                except Unreached:  # the site's own thread tells about it
                    self._is_first = True
                    self._over.wait(AGAIN_S)
                except Kept as error:
                    self._is_first = True
                    if not self.house.is_paused:
                        self._refuse(f"{error.message}{f': {error.found}' if error.found else ''}")
                    self._over.wait(AGAIN_S)
                except KonvoiError as error:
                    self.say(f"the server says: {error.message}{f' ({error.found})' if error.found else ''}")
                    self._over.wait(AGAIN_S)
        finally:
            self.process.end()

    def _turn(self) -> None:
        facts = self._ask(IS_READY, waits=not self._is_first)
        self._is_first = False
        if facts.state in ("over", "stopped"):
            self._settle(facts)
            self.is_done = True
            self._over.set()
            return
        if why := self.forbidden(facts):
            self._refuse("; ".join(why))
            self._ask(REFUSES, waits=True)
            return
        self._settle(facts)
        if facts.wanted:
            self._train(facts)

    def _ask(self, doing: int, *, waits: bool = False) -> Facts:
        values = {"run": bytes.fromhex(self.hash), "doing": doing, "waits": int(waits)}
        return facts_of(json.loads(self._send("ask", values)))

    def _send(self, kind: str, values: Mapping[str, Any]) -> bytes:
        listed = self.pack.leaves if kind == "update" else PROTOCOL
        return self.gate.send(listed, kind, values, run=self.run_.id, pack=self.pack.hash, is_over=self._over.is_set)

    # -- what this site does not do ------------------------------------------------------------------------------------

    def forbidden(self, facts: Facts) -> list[str]:
        """What the server asks for that goes beyond the pack, this site's limits, or what it has said before."""
        if facts.run.hash != self.hash:
            return ["the server has changed the run"]
        plan, limits = convoy_of(self.pack.plan, self.run_.settings), self.house.limits
        found = outside(self.run_.settings, self.pack.ranges)
        assert plan.local is not None
        found += limits.forbid(plan.local, facts.rounds, self.signer)
        if self.pack.hash not in self.house.approved():
            found.append("it is not approved here any more")
        if facts.rounds != plan.rounds or facts.round > plan.rounds + 1:
            found.append(f"round {facts.round} of {facts.rounds}; the pack has {plan.rounds}")
        members = self.house.roster()["members"]
        asked = len({*facts.cohort} & members.keys()) if not plan.at_once else plan.at_once
        if facts.wanted and asked < limits.min_cohort:
            found.append(f"a round of {asked} members; this site allows {limits.min_cohort} or more")
        return found + self._gone_back(facts)

    def _gone_back(self, facts: Facts) -> list[str]:
        path = self.folder / "known.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"round": 0, "base": ""}
        if facts.round < known["round"]:
            return [f"the server has gone back: round {facts.round}, after {known['round']}"]
        if facts.round == known["round"] and facts.base != known["base"]:
            return [f"the server shows other weights for round {facts.round} than before"]
        if facts.round > known["round"]:
            write(path, json.dumps({"round": facts.round, "base": facts.base}).encode())
        return []

    def _refuse(self, why: str) -> None:
        if why != self._refused:
            self._refused = why
            self.say(f"this site takes no part: {why}")
            with contextlib.suppress(KonvoiError):  # a person here knows
                self._send("error", {"run": bytes.fromhex(self.hash), "code": LIMITS})

    # -- a round -------------------------------------------------------------------------------------------------------

    def _settle(self, facts: Facts) -> None:
        """What was kept for the last update holds if that has counted, and is forgotten if it never will."""
        pending = self._pending()
        if pending is None:
            return
        if facts.counted == pending["hash"]:
            (self.folder / "own.new").replace(self.folder / "own")
            self.say(f"its update for round {pending['round']} has counted")
        elif facts.base == pending["base"] or (facts.wanted is False and self.run_at_once):
            return
        for name in ("pending.json", "pending.frame", "own.new"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def run_at_once(self) -> bool:
        return bool(self.pack.plan.get("at_once"))

    def _pending(self) -> dict[str, Any] | None:
        path = self.folder / "pending.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _train(self, facts: Facts) -> None:
        pending = self._pending()
        if pending is None or pending["base"] != facts.base:
            values = self._learn(facts)
            if values is None:
                return
        else:  # it is asked for again: the same bytes
            _, found = self.pack.leaves.read((self.folder / "pending.frame").read_bytes())
            values = dict(found)
        self._send("update", values)

    def _learn(self, facts: Facts) -> dict[str, Any] | None:
        weights = self.folder / "weights" / facts.base
        weights.parent.mkdir(exist_ok=True)
        if not weights.exists():
            for old in weights.parent.iterdir():
                if not old.name.endswith(".part"):
                    old.unlink()
            self.gate.fetch(facts.base, weights, size=facts.size, run=self.run_.id, pack=self.pack.hash)
        own = self.folder / "own"
        order = Order(
            round=facts.round,
            weights=str(weights.resolve()),
            own=str(own.resolve()) if own.exists() else "",
            out=str((self.folder / "out.npz").resolve()),
            keep=str((self.folder / "own.new").resolve()),
            settings={**self.run_.settings},
            evaluate=any(field.name == "valid_loss" for field in self.pack.leaves.frame("update").fields),
        )
        self.say(f"trains for round {facts.round}")
        result = self._watched(order)
        if result is None:
            return None
        if result.code:
            self.say(f"no update for round {facts.round}; why stands in {self.folder / 'log.txt'}")
            self._send("error", {"run": bytes.fromhex(self.hash), "code": result.code})
            self._failed += 1
            self._over.wait(min(AGAIN_S * 2**self._failed, RARELY_S))
            return None
        self._failed = 0
        values = self._values(facts, result)
        data = self.pack.leaves.build("update", values)  # finite, as the process has looked
        write(self.folder / "pending.frame", data)
        told = {"round": facts.round, "base": facts.base, "hash": hash_of(data)}
        write(self.folder / "pending.json", json.dumps(told).encode())
        return values

    def _watched(self, order: Order) -> Result | None:
        """Beside the training the server hears now and then that this site is there."""
        done, most_s = threading.Event(), 60 * self.house.limits.max_minutes_per_round

        def beat() -> None:
            while not done.wait(BEAT_S) and not self._over.is_set():
                try:
                    self._ask(TRAINS)
                except KonvoiError:
                    continue

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            return self.process.train(order, most_s=most_s, is_over=lambda: self._over.is_set() or self.house.is_paused)
        finally:
            done.set()
            beating.join()

    def _values(self, facts: Facts, result: Result) -> dict[str, Any]:
        """The fields of an update, as the list has them."""
        listed, values = self.pack.leaves, dict[str, Any]()
        with np.load(self.folder / "out.npz") as found:
            if self.pack.kind == "survey":
                values |= {name: found[name] for name in found}
            for part in ("move", "control"):
                if part in found:
                    values |= fields(listed, found[part], part)
        simple = {
            "run": bytes.fromhex(self.hash),
            "round": facts.round,
            "base": bytes.fromhex(facts.base),
            "samples": result.samples,
            "loss": result.loss,
            "valid_loss": result.valid_loss,
            "valid_samples": result.valid_samples,
        }
        known = {field.name for field in listed.frame("update").fields}
        return {name: value for name, value in simple.items() if name in known} | values

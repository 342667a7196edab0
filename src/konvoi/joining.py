"""How an island comes to the agreed state that others have: from several of them at once, each piece checked against
its hash, and the whole against a later decision. Nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from konvoi.errors import FleetError
from konvoi.parcels import Parcels
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import Chunks, assemble, hashed, root
from konvoi.plan.sync.messages import Ask, Decision, State, StateAsk
from konvoi.plan.sync.state import Rules
from konvoi.values import Wire

NUM_SOURCES = 4
NUM_ASKED = 4  # pieces at a time, from each
MOST_IDLE = 5  # beats without a piece
MOST_BEATS = 150  # beats without any answer
HASHED = 2  # of so many rounds one: hashing a state takes as long as encoding an update


class Newcomer:
    """One attempt after the other to have the newest state."""

    def __init__(
        self,
        name: str,
        anchor: Anchor,
        parcels: Parcels,
        wire: Wire,
        refuse: Callable[[str], None],
        last: Decision,
        changed: Callable[[], None] = lambda: None,
        kept: int = Rules.kept,
    ) -> None:
        """`changed` is called when a state, its last piece or a decision has come. `kept`: decisions that are looked
        back at."""
        self._kept = kept
        self._changed = changed
        self._name, self._anchor, self._parcels, self._wire, self._refuse = name, anchor, parcels, wire, refuse
        self._decisions = {last.round: last}
        self._wanted: State | None = None
        self._sources: list[str] = []
        self._missing: deque[str] = deque()
        self._asked: dict[str, str] = {}  # from whom
        self._data: dict[str, bytes] = {}
        self._had = self._num_idle = self._num_beats = 0
        self._has_heard = False
        self._first_at = self._last_at = 0.0
        self.num_bytes = 0  # that were fetched

    @property
    def seconds(self) -> float:
        """From the first piece that was asked for to the last that came."""
        return max(0.0, self._last_at - self._first_at)

    def beat(self) -> None:
        """Some seconds are over.

        Raises: FleetError where nobody answers for too long.
        """
        self._num_beats += 1
        if self._num_beats > MOST_BEATS and not self._has_heard:
            raise FleetError("nobody has the agreed state any more", found=f"asked {MOST_BEATS} times")
        self._give_up_the_silent()

    def ask(self, peers: Sequence[str], round: int) -> None:
        """Those who may have it, and the sums of what was decided since. `round`: of this island."""
        wants = self._lacking() if self._way() else ()
        for peer in peers[:NUM_SOURCES]:
            known = self._wanted.decision.round if self._wanted else -1
            self._wire.send(self._name, peer, Ask(round, wants) if wants else StateAsk(known))

    def _give_up_the_silent(self) -> None:
        """A source that has gone away says nothing more."""
        self._num_idle = self._num_idle + 1 if self._asked and len(self._data) == self._had else 0
        self._had = len(self._data)
        if self._num_idle > MOST_IDLE:
            for source in {*self._asked.values()}:
                self.lost(source)
            self._num_idle = 0

    def needed(self) -> set[str]:
        """Hashes of the sums that lead from the state to the newest decision."""
        return {hash for one in self._decisions.values() for hash in one.results}

    def on_state(self, sender: str, state: State) -> None:
        """Somebody has this one. A newer one takes the place of one that nobody gives any more."""
        known, self._has_heard = self._wanted, True
        if known is not None and (state.decision.id, state.chunks) == (known.decision.id, known.chunks):
            if sender not in self._sources:
                self._sources.append(sender)
        elif known is None or (state.decision.round > known.decision.round and not self._sources):
            self._wanted, self._sources = state, [sender]
            names = dict.fromkeys(state.chunks)
            self._data = {name: data for name, data in self._data.items() if name in names}
            self._missing, self._asked = deque(name for name in names if name not in self._data), {}
        self._go_on()
        self._changed()

    def _go_on(self) -> None:
        for source in list(self._sources):
            while self._missing and sum(who == source for who in self._asked.values()) < NUM_ASKED:
                name = self._missing.popleft()
                self._first_at = self._first_at or time.monotonic()
                self._asked[name] = source
                self._wire.fetch(self._name, source, name, partial(self._got, source, name))

    def _got(self, source: str, name: str, data: bytes | None) -> None:
        if self._asked.get(name) == source:
            del self._asked[name]
        elif name in self._missing and data is not None and hashed(data) == name:
            self._missing.remove(name)  # from somebody who was given up too soon
        else:
            return
        if data is not None and hashed(data) == name:
            self._data[name] = data
            self._last_at, self.num_bytes = time.monotonic(), self.num_bytes + len(data)
        else:
            self._missing.append(name)
            self.lost(source)
            if data is not None:
                self._refuse(source)
        self._go_on()
        if not self._missing and not self._asked:
            self._changed()

    def lost(self, source: str) -> None:
        """It does not have it any more, or lies, or is gone."""
        if source in self._sources:
            self._sources.remove(source)
        self._missing.extend(name for name, who in self._asked.items() if who == source)
        self._asked = {name: who for name, who in self._asked.items() if who != source}
        self._go_on()

    # -- from that state to the newest decision ---------------------------------------------------------------------

    def decided(self, decision: Decision) -> None:
        if self._decisions.get(decision.round) == decision:
            return
        self._decisions[decision.round] = decision
        for old in sorted(self._decisions)[: -self._kept]:
            del self._decisions[old]
        self._changed()

    def _way(self) -> list[Decision]:
        """The decisions from the state that is here to the newest, the first of which vouches for it; none where that
        is not so, or not yet."""
        wanted = self._wanted
        if wanted is None or self._missing or self._asked:
            return []
        newest, before = max(self._decisions), wanted.decision
        way = list[Decision]()
        for round in range(wanted.decision.round + 1, newest + 1):
            one = self._decisions.get(round)
            if one is None or one.previous != before.id:
                break
            way.append(one)
            before = one
        is_whole = bool(way) and before.round == newest
        if is_whole and way[0].anchor == root(wanted.chunks):
            return way
        if is_whole or newest - wanted.decision.round >= self._kept:  # it is not what the others have, or too old
            self._wanted, self._sources = None, []
        return []

    def _lacking(self) -> tuple[str, ...]:
        return tuple(hash for one in self._way() for hash in one.results if hash not in self._parcels)

    def is_ready(self, *, ask: bool = False) -> bool:
        """With `ask`, sums that are missing are asked for."""
        lacking = self._lacking()
        if lacking and ask and self._sources:
            self._wire.send(self._name, self._sources[0], Ask(max(self._decisions), lacking))
        return bool(self._way()) and not lacking

    def arrive(self, take: Callable[[Decision, Tensor], None]) -> Decision:
        """Take the state, and with `take` the means that were decided since; returns the last decision.

        Raises: MessageRefused where what was fetched cannot be read.
        """
        assert self._wanted is not None
        way = self._way()
        self._anchor.load(assemble(self._wanted.chunks, self._data, self._anchor.vectors()))
        for one in way:
            if one.results:
                mean = self._anchor.decode(one.round, [self._parcels[hash] for hash in one.results])
                take(one, mean)
                self._anchor.done_with(one.round, mean)
        return way[-1]


class Library:
    """The states that an island can give to others: the newest that was hashed, and those that somebody has asked for
    lately. Whoever takes one goes on from there by the sums of what was decided since."""

    KEPT = 2

    def __init__(self, recycle: Callable[[Sequence[Tensor]], None] = lambda vectors: None) -> None:
        """`recycle` takes the vectors of states that nobody has asked for and that are not the newest any more."""
        self.newest: tuple[Decision, Chunks] | None = None
        self._present: tuple[str, list[Tensor]] = ("", [])  # behind which decision, and what it is
        self._lent: dict[str, tuple[Decision, Chunks]] = {}
        self._recycle, self._lock = recycle, threading.Lock()

    def put(self, decision: Decision, vectors: Sequence[Tensor]) -> str:
        """The hash that stands for the state behind a decision; "" in rounds in which nobody makes one."""
        is_hashed = decision.round % HASHED == 0 or len(decision.members) == 1  # who is alone waits for others
        if self._present[0] != decision.id:
            made = (decision, Chunks(vectors)) if is_hashed else self.newest
            with self._lock:
                before = {id(one): one for one in (*self._present[1], *self._vectors(self.newest))}
                self._present, self.newest = (decision.id, list(vectors)), made
                held = (*vectors, *self._vectors(made, *self._lent.values()))
                needed = {id(vector) for vector in held}
                self._recycle([vector for name, vector in before.items() if name not in needed])
        return self.newest[1].root if is_hashed and self.newest is not None else ""

    @staticmethod
    def _vectors(*states: tuple[Decision, Chunks] | None) -> list[Tensor]:
        return [vector for state in states if state is not None for vector in state[1].vectors]

    def lend(self, round: int) -> State | None:
        """The state of this round where it is still lent, as somebody may be in the middle of it; else the newest."""
        with self._lock:
            known = next((one for one in self._lent.values() if one[0].round == round), self.newest)
            if known is None:
                return None
            decision, chunks = known
            self._lent.pop(decision.id, None)
            self._lent = {**dict(list(self._lent.items())[1 - self.KEPT :]), decision.id: known}
        return State(decision, chunks.names)

    def find(self, name: str) -> bytes | None:
        for _, chunks in reversed(self._lent.values()):
            if (data := chunks.find(name)) is not None:
                return data
        return None

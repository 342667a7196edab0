"""How an island comes to the agreed state that others have: from several of them at once, each piece checked against
its hash, and the whole against a later decision. Nobody waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from konvoi.plan.exchange.chunks import Chunks, assemble, hashed, root
from konvoi.plan.sync.messages import Decision, State, StateAsk

NUM_SOURCES = 4
NUM_ASKED = 4  # pieces at a time, from each


class Newcomer:
    """One attempt after the other to have the newest state."""

    def __init__(
        self,
        like: Sequence[Tensor],
        send: Callable[[str, StateAsk], None],
        fetch: Callable[[str, str, Callable[[bytes | None], None]], None],
        refuse: Callable[[str], None],
    ) -> None:
        self._like, self._send, self._fetch, self._refuse = like, send, fetch, refuse
        self._wanted: State | None = None
        self._sources: list[str] = []
        self._missing: deque[str] = deque()
        self._asked: dict[str, str] = {}  # from whom
        self._data: dict[str, bytes] = {}

    def ask(self, peers: Sequence[str]) -> None:
        """Of those who may have it. Asked again and again, until there is an answer."""
        for peer in peers[:NUM_SOURCES]:
            self._send(peer, StateAsk(self._wanted.decision.round if self._wanted else -1))

    def on_state(self, sender: str, state: State) -> None:
        """Somebody has this one. A newer one takes the place of one that nobody gives any more."""
        known = self._wanted
        if known is not None and (state.decision.id, state.chunks) == (known.decision.id, known.chunks):
            if sender not in self._sources:
                self._sources.append(sender)
        elif known is None or (state.decision.round > known.decision.round and not self._sources):
            self._wanted, self._sources = state, [sender]
            names = dict.fromkeys(state.chunks)
            self._data = {name: data for name, data in self._data.items() if name in names}
            self._missing, self._asked = deque(name for name in names if name not in self._data), {}
        self._go_on()

    def _go_on(self) -> None:
        for source in list(self._sources):
            while self._missing and sum(who == source for who in self._asked.values()) < NUM_ASKED:
                name = self._missing.popleft()
                self._asked[name] = source
                self._fetch(source, name, lambda data, name=name, source=source: self._got(source, name, data))  # type: ignore[misc]

    def _got(self, source: str, name: str, data: bytes | None) -> None:
        if self._asked.get(name) != source:
            return  # of an attempt that was given up
        del self._asked[name]
        if data is not None and hashed(data) == name:
            self._data[name] = data
        else:
            self._missing.append(name)
            self.lost(source)
            if data is not None:
                self._refuse(source)
        self._go_on()

    def lost(self, source: str) -> None:
        """It does not have it any more, or lies, or is gone."""
        if source in self._sources:
            self._sources.remove(source)
        self._missing.extend(name for name, who in self._asked.items() if who == source)
        self._asked = {name: who for name, who in self._asked.items() if who != source}
        self._go_on()

    def vouched(self, decision: Decision) -> tuple[Decision, list[Tensor]] | None:
        """The state, if it is here and this decision has been built on it.

        Raises: MessageRefused where it is, and cannot be read.
        """
        wanted = self._wanted
        if wanted is None or self._missing or self._asked or decision.previous != wanted.decision.id:
            return None
        if decision.anchor != root(wanted.chunks):
            if decision.anchor:  # it was not what the others have
                self._wanted, self._sources = None, []
            return None
        return wanted.decision, assemble(wanted.chunks, self._data, self._like)


class Library:
    """The states that an island can give to others: its newest, and those that somebody has asked for lately."""

    KEPT = 2

    def __init__(self) -> None:
        self.newest: tuple[Decision, Chunks] | None = None
        self._lent: dict[str, Chunks] = {}

    def put(self, decision: Decision, vectors: Sequence[Tensor]) -> str:
        """The hash that stands for the state behind a decision."""
        if self.newest is None or self.newest[0].id != decision.id:
            self.newest = decision, Chunks(vectors)
        return self.newest[1].root

    def lend(self) -> State | None:
        if self.newest is None:
            return None
        decision, chunks = self.newest
        self._lent.pop(decision.id, None)
        self._lent = {**dict(list(self._lent.items())[1 - self.KEPT :]), decision.id: chunks}
        return State(decision, chunks.names)

    def find(self, name: str) -> bytes | None:
        for chunks in reversed(self._lent.values()):
            if (data := chunks.find(name)) is not None:
                return data
        return None

"""What an island has promised and decided, written down before it says so, with the sums that this names."""

from __future__ import annotations

from konvoi.parcels import Parcels
from konvoi.plan.sync.frames import decode_durable, encode_durable
from konvoi.plan.sync.state import Durable, State
from konvoi.state.journal import Journal


class Notebook:
    """Over a journal; without one nothing outlives the process."""

    def __init__(self, journal: Journal | None, parcels: Parcels) -> None:
        self._journal, self._parcels = journal, parcels

    def write(self, durable: Durable) -> None:
        if self._journal is None:
            return
        names = {*durable.last.results, *(durable.vote.decision.results if durable.vote is not None else ())}
        self._journal.write(encode_durable(durable), {n: self._parcels[n] for n in names if n in self._parcels})
        self._journal.keep_only(names)

    def recall(self, state: State) -> bool:
        """Take up what was written down before a crash; whether there was anything. Raises: MessageRefused."""
        entry = self._journal.read() if self._journal is not None else None
        if entry is None or self._journal is None:
            return False
        durable = decode_durable(entry)
        held = {self._parcels.keep(data) for data in self._journal.named().values()}
        state.last, state.promised, state.vote = durable.last, durable.promised, durable.vote
        state.held = frozenset(held)
        state.kept = (durable.last,) if held.issuperset(durable.last.results) else ()
        return True

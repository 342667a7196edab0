"""Encoded parts by their hash: those that this island has made, and those that it has fetched from others."""

from __future__ import annotations

from collections.abc import Callable, Collection

from konvoi.plan.exchange.chunks import hashed
from konvoi.plan.sync.messages import Message, Piece, Result
from konvoi.values import Wire


class Parcels:
    """What is asked for twice on its way from one peer is fetched once."""

    def __init__(self, name: str, wire: Wire) -> None:
        self._name, self._wire = name, wire
        self._held: dict[str, bytes] = {}
        self._told: set[tuple[str, str]] = set()  # to whom, and what
        self._coming: set[tuple[str, str]] = set()  # from whom, and what

    def __contains__(self, hash: str) -> bool:
        return hash in self._held

    def __getitem__(self, hash: str) -> bytes:
        return self._held[hash]

    def find(self, hash: str) -> bytes | None:
        return self._held.get(hash)

    def about(self, peer: str, message: Message) -> tuple[str, bytes] | None:
        """What a message tells that is here; once to each peer, who can fetch it should it be lost."""
        if not isinstance(message, (Piece, Result)) or (peer, message.hash) in self._told:
            return None
        data = self._held.get(message.hash)
        if data is None:
            return None
        self._told.add((peer, message.hash))
        return message.hash, data

    def keep(self, data: bytes) -> str:
        hash = hashed(data)
        self._held[hash] = data
        return hash

    def keep_only(self, hashes: Collection[str]) -> None:
        self._held = {hash: data for hash, data in self._held.items() if hash in hashes}
        self._told = {(peer, hash) for peer, hash in self._told if hash in hashes}

    def fetch(
        self, peer: str, hash: str, then: Callable[[bool], None], gone: Callable[[], None] = lambda: None
    ) -> None:
        """`then(True)` is called when it is here, `then(False)` when something else has come, `gone` when the peer has
        no such thing."""
        if (peer, hash) in self._coming:
            return
        self._coming.add((peer, hash))

        def came(data: bytes | None) -> None:
            self._coming.discard((peer, hash))
            if data is not None:
                is_right = hashed(data) == hash
                if is_right:
                    self._held[hash] = data
                then(is_right)
            else:
                gone()

        self._wire.fetch(self._name, peer, hash, came)

"""Islands of one process: messages pass through a queue, under a clock that stands still between them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Hub:
    """Everybody's wire and clock. Nothing happens but in `run`, and always in the same order."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.now, self.delay_s = 0.0, delay_s
        self.sent_bytes: dict[str, int] = {}  # that others have fetched, by who held them
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._receive: dict[str, Callable[[str, Any], None]] = {}
        self._find: dict[str, Callable[[str], bytes | None]] = {}

    def join(self, name: str, receive: Callable[[str, Any], None], find: Callable[[str], bytes | None]) -> None:
        self._receive[name], self._find[name] = receive, find
        self.sent_bytes.setdefault(name, 0)

    def watch(self, name: str, reaches: Callable[[str, bool], None]) -> None:
        """Nobody is out of reach of memory."""

    def leave(self, name: str) -> None:
        """What is on its way to it is lost."""
        del self._receive[name], self._find[name]

    def send(self, sender: str, to: str, message: Any, about: tuple[str, bytes] | None = None) -> None:
        """What it is about is fetched: that takes no time here."""
        self.after(self.delay_s, lambda: self._receive[to](sender, message) if to in self._receive else None)

    def fetch(self, name: str, peer: str, hash: str, then: Callable[[bytes | None], None]) -> None:
        def arrive() -> None:
            data = self._find[peer](hash) if peer in self._find else None
            if peer in self._find and name in self._receive:
                self.sent_bytes[peer] += len(data or b"")
                then(data)

        self.after(self.delay_s, arrive)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, call))

    def work(self, function: Callable[[], T], then: Callable[[T], None]) -> None:
        self.after(0.0, lambda: then(function()))

    def run(self, seconds: float = 0.0) -> None:
        """All that happens in the next so many seconds; with 0, all that is to happen now."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, call = heapq.heappop(self._queue)
            call()
        self.now = until

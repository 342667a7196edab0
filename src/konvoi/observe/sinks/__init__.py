"""Sinks take events and show them, one file each; nothing else in Konvoi prints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from konvoi.observe.events import Event


class Sink(Protocol):
    def __call__(self, event: Event, /) -> None: ...

    def close(self) -> None:
        """What was held back is written; may be called twice."""
        ...


class FanOut:
    """Hands each event to every sink, in the order given, from whichever thread it comes."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._lock = threading.RLock()  # checkpoints report from their own thread

    def __call__(self, event: Event, /) -> None:
        with self._lock:
            for sink in self._sinks:
                sink(event)

    def close(self) -> None:
        """Closes all of them, also when one raises."""
        with self._lock, ExitStack() as closing:
            for sink in reversed(self._sinks):
                closing.callback(sink.close)


def fan_out(sinks: Sequence[Sink]) -> FanOut:
    """One sink out of many."""
    return FanOut(sinks)

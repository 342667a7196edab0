"""A wire whose every call back comes under one lock, and whose failures are not lost in a thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from konvoi.values import Wire

T = TypeVar("T")


class Guarded:
    """`failed(error)` is told what a call back, or somebody's work, has raised."""

    def __init__(self, wire: Wire, lock: threading.RLock, failed: Callable[[BaseException], None]) -> None:
        self._wire, self._lock, self._failed = wire, lock, failed
        self._timers: dict[str, int] = {}

    def _guarded(self, call: Callable[..., T]) -> Callable[..., T | None]:
        @functools.wraps(call)
        def guarded(*given: Any) -> T | None:
            with self._lock:
                try:
                    return call(*given)
                except BaseException as error:
                    self._failed(error)
                    return None

        return guarded

    def join(self, name: str, receive: Callable[[str, Any], None], find: Callable[[str], bytes | None]) -> None:
        self._wire.join(name, self._guarded(receive), self._guarded(find))

    def watch(self, name: str, reaches: Callable[[str, bool], None]) -> None:
        self._wire.watch(name, self._guarded(reaches))

    def send(self, sender: str, to: str, message: Any, about: tuple[str, bytes] | None = None) -> None:
        self._wire.send(sender, to, message, about)

    def fetch(self, name: str, peer: str, hash: str, then: Callable[[bytes | None], None]) -> None:
        self._wire.fetch(name, peer, hash, self._guarded(then))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._wire.after(seconds, self._guarded(call))

    def timer(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """A later one of the same name takes its place."""
        key = self._timers[name] = self._timers.get(name, 0) + 1
        self.after(seconds, lambda: call() if self._timers[name] == key else None)

    def work(self, function: Callable[[], T], then: Callable[[T], None]) -> None:
        def attempt() -> tuple[T | None, BaseException | None]:
            try:
                return function(), None
            except BaseException as error:
                return None, error

        def done(found: tuple[T | None, BaseException | None]) -> None:
            value, error = found
            if error is not None:
                raise error
            then(value)  # type: ignore[arg-type]

        self._wire.work(attempt, self._guarded(done))

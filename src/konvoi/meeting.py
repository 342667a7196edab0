"""Where islands learn of each other's addresses: a computer's folder, a launcher's store, a federation's desk."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from konvoi.fleet.wire import dial
from konvoi.task import Federation

ASK_S = 2.0
BACKOFF_S = 30.0  # at most, between two questions that nobody answers


class Meeting(Protocol):
    def begin(self, port: int) -> None:
        """This island listens there from now on."""
        ...

    def where(self, name: str) -> str | None:
        """host:port; None where it is not known yet."""
        ...

    def say_done(self) -> None:
        """This island has taken its last step."""
        ...

    def all_done(self, names: Iterable[str]) -> bool: ...

    def close(self) -> None: ...


class Folder:
    """Files `NAME/address` and `NAME/done` below a folder that all islands see."""

    def __init__(self, folder: Path, name: str, host: str) -> None:
        self.folder, self.name, self.host = folder, name, host

    def begin(self, port: int) -> None:
        path = self.folder / self.name / "address"
        new = path.with_suffix(".new")
        new.write_text(f"{self.host}:{port}")
        new.replace(path)
        (self.folder / self.name / "done").unlink(missing_ok=True)  # it was, and died before the others were

    def where(self, name: str) -> str | None:
        try:
            return (self.folder / name / "address").read_text()
        except FileNotFoundError:
            return None

    def say_done(self) -> None:
        (self.folder / self.name / "done").touch()

    def all_done(self, names: Iterable[str]) -> bool:
        return all((self.folder / name / "done").exists() for name in names)

    def close(self) -> None:
        pass


class AtStore:
    """The key-value store of a launcher, as torchrun's, which goes when that ends."""

    def __init__(self, store: Any, name: str, host: str) -> None:
        self.store, self.name, self.host = store, name, host

    def begin(self, port: int) -> None:
        self.store.set(f"{self.name}/address", f"{self.host}:{port}")

    def where(self, name: str) -> str | None:
        key = f"{name}/address"
        return self.store.get(key).decode() if self._has(key) else None

    def say_done(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{self.name}/done", "1")

    def all_done(self, names: Iterable[str]) -> bool:
        return all(self._has(f"{name}/done") for name in names)

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError:  # whoever held it has ended
            return False

    def close(self) -> None:
        pass


class AtDesk:
    """Asks in a thread of its own, and tells what a person wants to know. What was heard last counts while no desk
    answers."""

    def __init__(
        self,
        federation: Federation,
        identity: Path,
        *,
        facts: Callable[[], Mapping[str, Any]],
        heard: Callable[[Iterable[str], Iterable[str], Sequence[str]], None],
        warn: Callable[[str], None],
    ) -> None:
        """`heard(members, revoked, reforms)` is called with every answer."""
        self.federation, self.identity = federation, identity
        self._facts, self._heard, self._warn = facts, heard, warn
        self._address, self._is_done = "", False
        self._addresses: dict[str, str] = {}
        self._done: set[str] = set()
        self._is_over, self._soon = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="konvoi-desk", daemon=True)

    def begin(self, port: int) -> None:
        self._address = self.federation.public or f":{port}"
        self._thread.start()

    def where(self, name: str) -> str | None:
        return self._addresses.get(name)

    def say_done(self) -> None:
        self._is_done = True
        self._soon.set()

    def all_done(self, names: Iterable[str]) -> bool:
        return self._done.issuperset(names)

    def close(self) -> None:
        self._is_over.set()
        self._soon.set()
        if self._thread.is_alive():
            self._thread.join(dial.TIMEOUT_S)

    def _run(self) -> None:
        wait, was_away = ASK_S, False
        while not self._is_over.is_set():
            try:
                self._ask()
                wait, was_away = ASK_S, False
            except Exception as error:  # whatever it is, this island goes on, and asks again
                if not was_away:
                    self._warn(f"{error}\nthis island goes on with whom it knows")
                wait, was_away = min(2 * wait, BACKOFF_S), True
            self._soon.wait(wait)
            self._soon.clear()

    def _ask(self) -> None:
        federation = self.federation
        body = {
            "terms": federation.terms,
            "address": self._address,
            "facts": {**self._facts(), "done": self._is_done},
        }
        told = dial.ask(federation.desks, "/meet", body, federation.authority, self.identity)
        self._addresses = {str(name): str(where) for name, where in told["addresses"].items()}
        self._done = set(map(str, told["done"]))
        self._heard(tuple(self._addresses), *(tuple(map(str, told.get(key, ()))) for key in ("revoked", "reforms")))


class Pace:
    """How quick an island is, and how much of its time it waits for others: of the last while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._samples, self._waited = clock(), 0, 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def stepped(self, samples: int) -> None:
        self._samples += samples

    def take(self) -> dict[str, float]:
        """Since the last call."""
        now = self._clock()
        seconds = max(1e-9, now - self._since)
        waits = min(1.0, self._waited / seconds)
        found = {"samples_per_s": round(self._samples / seconds, 2), "waits": round(waits, 3)}
        self._since, self._samples, self._waited = now, 0, 0.0
        return found

"""The one place from which anything leaves a site that is a member: built from the list, within the limits, let go by a
person where the site wants that, written down, and then sent."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from konvoi.errors import KonvoiError, MessageRefused
from konvoi.fleet.wire.dial import OK, Dial, as_answer
from konvoi.security import outbox
from konvoi.security.leaving import Listed
from konvoi.sites.house import House, is_released, let_go
from konvoi.sites.limits import DAY_S
from konvoi.sites.protocol import PIECE, PROTOCOL, hash_of

LOOK_S = 0.2


class Kept(KonvoiError):
    """It has not left: this site is paused, its limits forbid it, or a person has not let it go."""


class Gate:
    """Used by the threads of one process. `to`: the federation's name, for the outbox."""

    def __init__(self, house: House, dial: Dial, to: str, clock: Callable[[], float] = time.time) -> None:
        self.house, self.dial, self.to, self.clock = house, dial, to, clock
        self.outbox = house.outbox()
        self._lock = threading.Lock()
        since = clock() - DAY_S
        sent = ((one.at, one.size) for one in outbox.read(self.outbox.path) if one.at >= since)
        self._sent = deque[tuple[float, int]](sent)  # of the last day

    def send(
        self,
        listed: Listed,
        kind: str,
        values: Mapping[str, Any],
        *,
        run: str = "",
        pack: str = "",
        is_over: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """What is answered. `is_over` ends the wait for a person.

        Raises: Kept; MessageRefused for what is not listed; Unreached; FleetError with what the server has against it.
        """
        data = listed.build(kind, values)
        fields = [field.name for field in listed.frame(kind).fields]
        if kind == "update":
            self._wait_to_be_released(data, run, is_over)
        with self._lock:
            if self.house.is_paused or self.house.has_left:
                raise Kept("this site is paused")
            self._check_bytes(len(data))
            self.outbox.record(self.to, run, pack, kind, fields, data)
            self._sent.append((self.clock(), len(data)))
        status, told = self.dial.post("/frame", data)
        if status != OK:
            as_answer(status, told)
        return told

    def _check_bytes(self, size: int) -> None:
        most, since = self.house.limits.max_bytes_per_day, self.clock() - DAY_S
        while self._sent and self._sent[0][0] < since:
            self._sent.popleft()
        if sum(one for _, one in self._sent) + size > most:
            raise Kept("this site's limits forbid it: too much has left today", expected=f"at most {most:,} bytes")

    def _wait_to_be_released(self, data: bytes, run: str, is_over: Callable[[], bool]) -> None:
        limits = self.house.limits
        if limits.hold == "no" or (limits.hold == "first" and self._has_sent(run)):
            return
        path = self.house.hold(data)
        try:
            if limits.hold_command:
                done = subprocess.run([*limits.hold_command.split(), str(path)], check=False, capture_output=True)
                if done.returncode:
                    raise Kept(
                        "the command that looks at updates does not let it go", found=f"status {done.returncode}"
                    )
                return
            while not is_released(path):
                if is_over() or self.house.is_paused:
                    raise Kept("nobody has let this update go")
                time.sleep(LOOK_S)
        finally:
            let_go(path)

    def _has_sent(self, run: str) -> bool:
        return any(one.kind == "update" and one.run == run for one in outbox.read(self.outbox.path))

    def fetch(self, what: str, into: Path, *, size: int = -1, run: str = "", pack: str = "") -> None:
        """Into a file, in pieces, going on with what is there. `size`: in bytes, where that is known; then it has to
        have the hash that was asked for. Raises: as `send`; MessageRefused for another hash."""
        part = into.with_name(into.name + ".part")
        with part.open("ab") as file:
            while size < 0 or file.tell() < size:
                values = {"what": bytes.fromhex(what), "start": file.tell()}
                piece = self.send(PROTOCOL, "get", values, run=run, pack=pack)
                file.write(piece)
                if len(piece) < PIECE:
                    break
        if size >= 0 and hash_of(part.read_bytes()) != what:
            part.unlink()
            raise MessageRefused("what was fetched is not what was asked for", found=what[:12])
        part.replace(into)

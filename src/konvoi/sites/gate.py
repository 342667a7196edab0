"""The one place from which anything leaves a site that is a member: built from the list, within the limits, let go by a
person where the site wants that, written down, and then sent."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from konvoi.errors import KonvoiError
from konvoi.fleet.wire.dial import OK, Dial, as_answer
from konvoi.security import outbox
from konvoi.security.leaving import KIND, Listed
from konvoi.sites.house import House, is_released, let_go
from konvoi.sites.limits import DAY_S
from konvoi.sites.protocol import HASH

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

        Raises: Kept; MessageRefused for what is not listed; Unreached; Said with what the server has against it.
        """
        data = listed.build(kind, values)
        fields = [field.name for field in listed.frame(kind).fields]
        if kind == "update":
            self._wait_to_be_released(data, pack, is_over)
        with self._lock:
            self._check_word(kind, pack)
            self._check_bytes(len(data))
            self.outbox.record(self.to, run, pack, kind, fields, data)
            self._sent.append((self.clock(), len(data)))
        status, told = self.dial.post("/frame", data)
        if status != OK:
            as_answer(status, told)
        return told

    def _check_word(self, kind: str, pack: str) -> None:
        """A person's last word; it may have come while this was trained for, or held."""
        if self.house.is_paused or self.house.has_left:
            raise Kept("this site is paused")
        if kind == "update" and pack not in self.house.approved():
            raise Kept("it is not approved here any more")

    def _check_bytes(self, size: int) -> None:
        most, since = self.house.limits.max_bytes_per_day, self.clock() - DAY_S
        while self._sent and self._sent[0][0] < since:
            self._sent.popleft()
        if sum(one for _, one in self._sent) + size > most:
            raise Kept("this site's limits forbid it: too much has left today", expected=f"at most {most:,} bytes")

    def _wait_to_be_released(self, data: bytes, pack: str, is_over: Callable[[], bool]) -> None:
        limits, run = self.house.limits, data[KIND : KIND + HASH].hex()  # what a server calls a run may be used again
        if limits.hold == "no" or (limits.hold == "first" and self.house.has_let_go(run)):
            return

        def look() -> None:
            self._check_word("update", pack)
            if is_over():
                raise Kept("nobody has let this update go")
            time.sleep(LOOK_S)

        path = self.house.hold(data)
        try:
            if limits.hold_command:
                _ask_command(limits.hold_command.split(), path, look)
            else:
                while not is_released(path):
                    look()
            self.house.note_let_go(run)
        finally:
            let_go(path)


def _ask_command(command: list[str], path: Path, look: Callable[[], None]) -> None:
    try:
        process = subprocess.Popen([*command, str(path)], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    except OSError as error:
        raise Kept("the command that looks at updates cannot be run", found=str(error)) from None
    try:
        while process.poll() is None:
            look()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Kept("the command that looks at updates does not let it go", found=f"status {process.returncode}")

"""What is done to a lab's hosts, and when, as a person writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import FleetError

if TYPE_CHECKING:
    from konvoi.lab.lab import Lab

MOST = 1000  # repetitions of one that comes again and again

Moment = tuple[float, str, Callable[[], object]]  # seconds, what happens, and how

NUMBER = r"(\d+(?:\.\d+)?)"
GRAMMAR = re.compile(rf"(cut|kill|slow) (\d+)(?: to {NUMBER})?(?: (at|every) {NUMBER})(?: for {NUMBER})?")
EXPECTED = "'cut 1 at 30 for 20', 'kill 2 at 60', 'kill 2 every 30', 'slow 3 to 0.13 at 0', 'deaf 0 1 at 30 for 20'"
DEAF = re.compile(rf"(deaf) (\d+) (\d+)(?: (at) {NUMBER})(?: for {NUMBER})?")


@dataclass(frozen=True)
class Fault:
    """One kind of thing that happens, once or again and again; seconds from the first step of all islands."""

    text: str
    kind: str
    hosts: tuple[int, ...]
    begin: float
    every: float | None = None
    lasts: float | None = None
    cores: float | None = None

    @property
    def needs_quota(self) -> bool:
        return self.kind in ("kill", "slow")

    def moments(self, lab: Lab) -> Iterator[Moment]:
        begins = [self.begin] if self.every is None else [self.every * turn for turn in range(1, MOST)]
        for begin in begins:
            yield self._first(lab, begin)
            if self.lasts is not None:
                yield self._last(lab, begin + self.lasts)

    def _first(self, lab: Lab, at: float) -> Moment:
        first = self.hosts[0]
        if self.kind == "kill":
            return at, f"island {first} is killed", lab.hosts[first].kill_workers
        if self.kind == "cut":
            return at, f"island {first} is cut off", lambda: lab.tell(f"cut {first}")
        if self.kind == "deaf":
            other = self.hosts[1]
            return at, f"island {first} hears nothing from {other}", lambda: lab.tell(f"deaf {first} {other}")
        cores = self.cores or 0.0
        return at, f"island {first} has {cores:g} cores", lambda: lab.hosts[first].limit(cores)

    def _last(self, lab: Lab, at: float) -> Moment:
        first = self.hosts[0]
        if self.kind == "cut":
            return at, f"island {first} is back", lambda: lab.tell(f"heal {first}")
        if self.kind == "deaf":
            return at, f"island {first} hears all", lambda: lab.tell(f"hear {first} {self.hosts[1]}")
        cores = lab.cpu or 0.0
        return at, f"island {first} has {cores:g} cores again", lambda: lab.hosts[first].limit(cores)


def fault(text: str) -> Fault:
    """Raises: FleetError for what is none.

    >>> fault("cut 1 at 30 for 20").lasts
    20.0
    """
    if found := DEAF.fullmatch(text.strip()):
        kind, host, other, _, at, lasts = found.groups()
        return Fault(text, kind, (int(host), int(other)), float(at), None, float(lasts) if lasts else None)
    found = GRAMMAR.fullmatch(text.strip())
    if found is None:
        raise FleetError("this is no fault", found=repr(text), expected=EXPECTED)
    kind, host, cores, when, seconds, lasts = found.groups()
    if (kind == "slow") != (cores is not None):
        raise FleetError(
            "a slow host has cores, and no other fault has", found=repr(text), expected="'slow 3 to 0.13 at 0'"
        )
    if kind == "kill" and lasts:
        raise FleetError("a killed island comes back at once", found=repr(text), expected=EXPECTED)
    every = float(seconds) if when == "every" else None
    if every is not None and not every > (float(lasts) if lasts else 0):
        raise FleetError("a fault ends before it comes again", found=repr(text))
    begin = float(seconds) if when == "at" else 0.0
    return Fault(
        text, kind, (int(host),), begin, every, float(lasts) if lasts else None, float(cores) if cores else None
    )

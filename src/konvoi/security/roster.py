"""Who may be a member of a federation: invitations for one named member each, who has come, and who may no longer. A
log that is only added to."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from konvoi import lines
from konvoi.errors import FleetError, StateError

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")  # as of a host: it stands in a certificate
HOURS = 24.0
ANEW = "konvoi federation invite NAME, once more"
DESK = "desk"  # the name in the certificate of whoever keeps the roster


@dataclass(frozen=True)
class Invited:
    hashed: str
    expires: float  # seconds since the epoch


@dataclass
class Roster:
    """Read from its log, and changed by adding to it. Times are given, so that a test has its own."""

    path: Path
    invited: dict[str, Invited] = field(default_factory=dict)  # and not come yet
    members: dict[str, str] = field(default_factory=dict)  # fingerprints of certificates by name
    revoked: dict[str, str] = field(default_factory=dict)  # fingerprints by name
    left: set[str] = field(default_factory=set)
    begun: tuple[str, ...] = ()  # with whom training began
    reforms: list[str] = field(default_factory=list)  # as who had it the convoy went on without a majority

    read: int = 0  # bytes of the log
    entries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> Roster:
        """Raises: StateError for a log that cannot be read."""
        roster = cls(path)
        roster.refresh()
        return roster

    def refresh(self) -> None:
        """Take what has been added since, by another process perhaps. Raises: StateError."""
        with self.lock:
            self._read_on()

    def _read_on(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == self.read:
            return
        for line in lines.since(self.path, self.read):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise StateError("the roster cannot be read", found=f"{self.path}: {error}") from None
            self.entries, self.read = self.entries + 1, self.read + len(line) + 1

    def invite(self, name: str, now: float, hours: float = HOURS) -> str:
        """A token for this member alone, for one use; only its hash is kept. An earlier one of the same name ends.

        Raises: FleetError for a name that cannot be, or is a member's.
        """
        if not NAME.fullmatch(name) or name == DESK:
            raise FleetError("a member's name is like a host's", found=repr(name), expected="letters, digits, - and .")
        if name in self.members:
            raise FleetError("there is such a member already", found=name, hint="revoke it first, or another name")
        if name in self.revoked:
            raise FleetError("this member was revoked: others would not hear it", found=name, hint="another name")
        if not hours > 0:
            raise FleetError("an invitation lasts some hours", found=hours)
        token = secrets.token_urlsafe(32)
        self._add({"what": "invited", "name": name, "hashed": _hashed(token), "expires": now + 3600 * hours, "at": now})
        return token

    def accept(self, name: str, token: str, now: float) -> None:
        """Whether this is the token of that invitation. It can be used until `admit`.

        Raises: FleetError, which says no more to a stranger than that it is not.
        """
        invited = self.invited.get(name)
        is_right = hmac.compare_digest(_hashed(token), invited.hashed if invited else _hashed(""))
        if invited is None or not is_right:
            raise FleetError("this invitation is not known here, or was used", hint=ANEW)
        if now > invited.expires:
            raise FleetError("this invitation has expired", hint=ANEW)

    def admit(self, name: str, fingerprint: str, now: float) -> None:
        """The invitation is used up."""
        self._add({"what": "joined", "name": name, "fingerprint": fingerprint, "at": now})

    def revoke(self, name: str, now: float) -> None:
        """Raises: FleetError where nobody of that name is invited or a member."""
        if name not in self.members and name not in self.invited:
            known = ", ".join(sorted({*self.members, *self.invited})) or "nobody"
            raise FleetError("there is no such member", found=name, expected=known)
        self._add({"what": "revoked", "name": name, "at": now})

    def leave(self, name: str, now: float) -> None:
        if name in self.members and name not in self.left:
            self._add({"what": "left", "name": name, "at": now})

    def begin(self, names: Sequence[str], now: float) -> None:
        """The convoy's first members; later ones come as newcomers."""
        if not self.begun:
            self._add({"what": "begun", "name": "", "names": sorted(names), "at": now})

    def reform(self, name: str, now: float) -> None:
        """A person's act: a majority is gone for good, and the convoy goes on as this member has it. Raises: FleetError
        where there is no such member."""
        if name not in self.members:
            known = ", ".join(sorted(self.members)) or "nobody"
            raise FleetError("there is no such member", found=name, expected=known)
        self._add({"what": "reformed", "name": name, "at": now})

    def is_member(self, name: str, fingerprint: str) -> bool:
        """Whether a certificate is that of a member now."""
        return self.members.get(name) == fingerprint

    # -- the log ------------------------------------------------------------------------------------------------------

    def _add(self, entry: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lines.append(self.path, json.dumps(entry).encode())
        except OSError as error:
            raise StateError("the roster cannot be written", found=f"{self.path}: {error.strerror}") from error
        self.refresh()

    def _take(self, entry: Mapping[str, Any]) -> None:
        name, what = entry["name"], entry["what"]
        if what == "begun":
            self.begun = tuple(entry["names"])
        elif what == "invited":
            self.invited[name] = Invited(entry["hashed"], entry["expires"])
        elif what == "joined":
            self.invited.pop(name, None)
            self.members[name] = entry["fingerprint"]
            self.left.discard(name)
        elif what == "revoked":
            self.invited.pop(name, None)
            if name in self.members:
                self.revoked[name] = self.members.pop(name)
        elif what == "reformed":
            self.reforms.append(name)
        elif what == "left":
            self.left.add(name)
        else:
            raise KeyError(what)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Invitation:
    """What a new member is given, in a file: where to go, whom to trust there, and the proof that it may come."""

    federation: str
    federation_id: str
    name: str  # the member's
    desks: tuple[str, ...]  # host:port, tried in this order
    authority: str  # PEM
    token: str
    expires: float
    recipe: str  # the file's name
    overrides: tuple[str, ...]  # of its job's fields
    plan: str  # as the command line has it
    terms: str  # hash of recipe, overrides, plan and version: what both sides must have alike

    def write(self, path: Path) -> None:
        """For the owner's eyes alone. Raises: FleetError where there is such a file."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise FleetError("there is such a file already", found=path) from None
        with os.fdopen(descriptor, "w") as file:
            file.write(self.as_text())

    def as_text(self) -> str:
        return json.dumps(self.__dict__, indent=1)

    @classmethod
    def load(cls, path: str) -> Invitation:
        """ "-" is standard input. Raises: FleetError."""
        try:
            return cls.read(sys.stdin.read() if path == "-" else Path(path).read_text())
        except OSError as error:
            raise FleetError("the invitation cannot be read", found=f"{path}: {error.strerror}") from None

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Raises: FleetError for what is none."""
        try:
            found = json.loads(text)
            kinds = {"desks": list, "overrides": list, "expires": float}
            if found.keys() != cls.__dataclass_fields__.keys():
                raise ValueError("other fields")
            for name, value in found.items():
                if not isinstance(value, kinds.get(name, str)):
                    raise TypeError(name)
            for name in (found["federation"], found["name"]):
                if not NAME.fullmatch(name):
                    raise ValueError(f"{name!r} is no name")
            if Path(found["recipe"]).name != found["recipe"]:
                raise ValueError(f"{found['recipe']!r} is no file's name")
            lists = {name: tuple(map(str, found[name])) for name in ("desks", "overrides")}
            return cls(**{**found, **lists})
        except (ValueError, TypeError, AttributeError) as error:
            raise FleetError("this is no invitation", found=str(error)) from None

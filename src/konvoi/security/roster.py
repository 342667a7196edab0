"""Who may be a member of a federation: invitations for one named member each, who has come, and who may no longer. A
log that is only added to. Of sites whose data stay there it also holds the roster that members sign (`signing.py`)."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from konvoi import lines
from konvoi.errors import FleetError, StateError
from konvoi.security.identity import sign_as
from konvoi.security.signing import Signing
from konvoi.security.version import LONGEST, NAME

HOURS = 24.0
ANEW = "konvoi federation invite NAME, once more"
DESK = "desk"  # the name in the certificate of whoever keeps the roster
FOUNDERS = "founders"  # what is approved by this name is nobody's


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
    signing: Signing | None = None  # of sites: whoever has come is a member when the roster says so
    organisations: dict[str, str] = field(default_factory=dict)  # of those invited
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

    def invite(self, name: str, now: float, hours: float = HOURS, organisation: str = "") -> str:
        """A token for this member alone, for one use; only its hash is kept. An earlier one of the same name ends.

        Raises: FleetError for a name that cannot be, or is a member's.
        """
        if not NAME.fullmatch(name) or name in (DESK, FOUNDERS):
            raise FleetError("a member's name is like a host's", found=repr(name), expected="letters, digits, - and .")
        if name in self.members:
            raise FleetError("there is such a member already", found=name, hint="revoke it first, or another name")
        if name in self.revoked:
            raise FleetError("this member was revoked: others would not hear it", found=name, hint="another name")
        if not hours > 0:
            raise FleetError("an invitation lasts some hours", found=hours)
        if not organisation.isprintable() or len(organisation) > LONGEST:
            expected = f"{LONGEST} characters that can be printed"
            raise FleetError("this is no organisation's name", found=repr(organisation[:60]), expected=expected)
        if self.signing is not None and not self.signing.versions and name not in self.signing.founders:
            hint = "they join, and each runs `konvoi federation approve-member`"
            expected = ", ".join(self.signing.founders)
            raise FleetError("founders come first, and sign the roster", found=name, expected=expected, hint=hint)
        token = secrets.token_urlsafe(32)
        told = {"hashed": _hashed(token), "expires": now + 3600 * hours, "organisation": organisation}
        self._add({"what": "invited", "name": name, **told, "at": now})
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

    def admit(self, name: str, fingerprint: str, now: float, key: str = "") -> None:
        """The invitation is used up. `key`: public. Raises: FleetError where that is another member's."""
        came = self.signing.came if self.signing is not None else {}
        if same := next((one.name for one in came.values() if one.key == key), ""):
            raise FleetError("this key is a member's already: one key has one name", found=f"{same}, as {name}")
        told = {"fingerprint": fingerprint, "key": key, "organisation": self.organisations.get(name, "")}
        self._add({"what": "joined", "name": name, **told, "at": now})

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

    # -- the roster of sites, as members sign it -----------------------------------------------------------------------

    def found(self, federation: str, now: float, founders: Sequence[str] = (), needed: int = 0, key: str = "") -> None:
        """`founders`: who signs it first, and then `needed` of them each newcomer; or `key`: public, of whoever keeps
        the server and then signs alone. Raises: FleetError."""
        for name in founders:
            if not NAME.fullmatch(name) or name in (DESK, FOUNDERS) or founders.count(name) > 1:
                raise FleetError("founders have names like hosts', each its own", found=repr(name))
        if founders and not 1 <= needed <= len(founders):
            raise FleetError("of the founders some approve", found=needed, expected=f"1 to {len(founders)} signatures")
        told = {"federation": federation, "founders": list(founders), "needed": needed, "key": key}
        self._add({"what": "founded", "name": "", **told, "at": now})

    def sign(self, name: str, text: str, signature: str, now: float) -> None:
        """An approver's signature on what the roster is to be next. Raises: FleetError, StateError."""
        if self.signing is None:
            raise FleetError("this federation's roster is not signed by its members")
        self.signing.check(name, text, signature, self.revoked)
        if name in self.signing.proposed.get(text, {}):
            return
        self._add({"what": "signed", "name": name, "text": text, "signature": signature, "at": now})

    def settle(self, key: bytes, now: float) -> None:
        """Where whoever keeps the server signs alone, with this key: the roster is made to say what this log says.
        Raises: FleetError, StateError for what cannot be signed."""
        self.refresh()
        while self.signing is not None and self.signing.is_kept and (text := self.signing.due(self.revoked)):
            self.signing.check(DESK, text, signature := sign_as(key, text.encode()), self.revoked)  # else for ever
            self._add({"what": "signed", "name": DESK, "text": text, "signature": signature, "at": now})

    def sites(self) -> tuple[str, ...]:
        """Members that are on the roster."""
        on = self.signing.members.sites if self.signing is not None else self.members
        return tuple(name for name in self.members if name in on)

    def stands(self, name: str) -> str:
        """Why one who has come is not a member yet; "" for who is one."""
        return self.signing.stands(name) if self.signing is not None else ""

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
            self.organisations[name] = entry.get("organisation", "")
        elif what == "joined":
            self.invited.pop(name, None)
            self.members[name] = entry["fingerprint"]
            self.left.discard(name)
            if self.signing is not None:
                self.signing.come(name, entry["organisation"], entry["key"], entry["at"])
        elif what == "revoked":
            self._remove(name)
        elif what == "founded":
            self.signing = Signing(entry["federation"], entry["needed"] or 1, tuple(entry["founders"]) or (DESK,))
            if entry["key"]:
                self.signing.keep(DESK, entry["key"], entry["at"])
        elif what == "signed" and self.signing is not None:
            for one in self.signing.take(name, entry["text"], entry["signature"]):
                self._remove(one)
        elif what == "reformed":
            self.reforms.append(name)
        elif what == "left":
            self.left.add(name)
        else:
            raise KeyError(what)

    def _remove(self, name: str) -> None:
        self.invited.pop(name, None)
        if name in self.members:
            self.revoked[name] = self.members.pop(name)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

"""How a roster comes to be signed, at the server: who has come, what waits for signatures, and the versions that have
enough. Changed by nothing but the entries of the federation's log, and so the same for whoever reads that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from konvoi.errors import FleetError, StateError
from konvoi.security import members as rosters
from konvoi.security.identity import is_by
from konvoi.security.members import Members
from konvoi.security.version import APPROVER, KEEPER, MEMBER, Entry, Version, about


@dataclass
class Signing:
    """`founders`: names; where it is the keeper's alone, roster and log are made to agree by `due`."""

    federation: str
    needed: int
    founders: tuple[str, ...]
    came: dict[str, Entry] = field(default_factory=dict)  # with a certificate, since the beginning
    versions: list[Version] = field(default_factory=list)
    members: Members = field(default_factory=Members)
    proposed: dict[str, dict[str, str]] = field(default_factory=dict)  # signatures so far, by what they sign

    @property
    def is_kept(self) -> bool:
        """Whether whoever keeps the server signs alone."""
        return any(one.role == KEEPER for one in self.came.values())

    def come(self, name: str, organisation: str, key: str, at: float, role: str = MEMBER) -> None:
        self.came[name] = Entry(name, organisation, key, APPROVER if name in self.founders else role, at)

    def keep(self, name: str, key: str, at: float) -> None:
        """Whoever keeps the server is the founder."""
        self.came[name] = Entry(name, "", key, KEEPER, at)

    def waiting(self, gone: Collection[str] = ()) -> dict[str, Entry]:
        """Who has come and is not on the roster."""
        known = {*self.members.entries, *self.members.gone, *gone}
        return {name: one for name, one in self.came.items() if name not in known}

    def founding(self) -> str:
        """What founders sign; "" until all have come, and when it is done."""
        if self.versions or not {*self.founders} <= self.came.keys():
            return ""
        return rosters.founding(self.federation, self.needed, [self.came[name] for name in self.founders])

    def due(self, gone: Collection[str]) -> str:
        """Where whoever keeps the server signs alone: what is to be signed next, so that roster and log agree; ""
        where they do."""
        if text := self.founding():
            return text
        for name in sorted({*gone} & self.members.entries.keys()):
            return self.members.without(name)
        for one in self.waiting(gone).values():
            return self.members.adding(one)
        return ""

    def check(self, name: str, text: str, signature: str, gone: Collection[str] = ()) -> None:
        """Raises: FleetError, StateError for a signature that does not count, or is of what cannot be next."""
        if not self.versions and text != self.founding():
            raise FleetError("this is not what the founders sign", hint="konvoi federation approve-member, once more")
        rosters.advance(self.members, text)
        may = rosters.voices(self.members, text)
        if name not in may:
            raise FleetError("this member's signature does not count here", found=name, expected=", ".join(may))
        if not is_by(may[name].key, signature, text.encode()):
            raise FleetError("this is not the signature of this member's key", found=name)
        for one in about(text)[0] if self.versions else ():
            known = self.members.entries.get(one.name) or self.waiting(gone).get(one.name)
            if known is None or replace(known, role=one.role) != one:
                waiting = ", ".join(self.waiting(gone)) or None
                raise FleetError("nobody has come as that", found=one.name, expected=waiting)

    def take(self, name: str, text: str, signature: str) -> tuple[str, ...]:
        """A signature from the log; returns who has gone by it. One that has come too late is none."""
        signatures = {**self.proposed.get(text, {}), name: signature}
        try:
            rosters.advance(self.members, text)
            by = rosters.signers(self.members, Version(text, signatures))
        except StateError:
            return ()
        self.proposed[text] = signatures
        if len(by) < rosters.needed(self.members, text):
            return ()
        version = Version(text, {one: signatures[one] for one in by})
        self.members = rosters.take(self.members, version)
        self.versions.append(version)
        self.proposed.clear()
        return about(text)[1]

    def signed(self) -> dict[str, list[str]]:
        """By whom what waits was signed so far, by the name that it is about; "" is the founding. Of two texts about
        one name it is the one that more have signed: they do not add up."""
        found = dict[str, list[str]]()
        for text, signatures in self.proposed.items():
            add, remove = about(text)
            name = (*remove, *(one.name for one in add))[0] if self.versions else ""
            found[name] = max(found.get(name, []), sorted(signatures), key=len)
        return found

    def stands(self, name: str) -> str:
        """Why a newcomer is not a member yet, for a person; "" for who is one."""
        if name in self.members.entries:
            return ""
        if not self.versions:
            by = self.signed().get("", [])
            return f"the founders have not signed the roster yet: {len(by)} of {len(self.founders)}"
        by = self.signed().get(name, [])
        return f"{name} is not on the roster yet: {len(by)} of {self.needed} have approved it"

    def told(self, gone: Collection[str]) -> Mapping[str, Any]:
        """For those who sign."""
        return {
            "versions": as_told(self.versions),
            "waiting": [asdict(one) for one in self.waiting(gone).values()],
            "founding": self.founding(),
            "signed": self.signed(),
        }


def as_told(versions: Sequence[Version]) -> list[dict[str, Any]]:
    return [{"text": one.text, "signatures": dict(one.signatures)} for one in versions]

"""The roster as its members hold it: versions, each chained to the one before and signed by enough of those whom that
one names. Whoever carries it from one to the other can add nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType

from konvoi.errors import StateError
from konvoi.security.identity import is_by, mark
from konvoi.security.version import FIELDS, KEEPER, MEMBER, Entry, Version, about, as_text, read


@dataclass(frozen=True)
class Members:
    """What the versions up to one of them come to. Before the first, nothing."""

    federation: str = ""  # its id
    needed: int = 0  # signatures of approvers
    number: int = -1
    head: str = ""  # hash of the newest version
    entries: Mapping[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    gone: frozenset[str] = frozenset()  # names and keys that were on it
    signed: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))  # who was for each
    founding: str = ""  # hash of the first version

    @property
    def approvers(self) -> tuple[str, ...]:
        return tuple(name for name, one in self.entries.items() if one.role != MEMBER)

    @property
    def sites(self) -> Mapping[str, Entry]:
        """Those who have data: of whom a round is."""
        return {name: one for name, one in self.entries.items() if one.role != KEEPER}

    @property
    def is_kept(self) -> bool:
        """Whether whoever keeps the server adds members alone."""
        return any(one.role == KEEPER for one in self.entries.values())

    def adding(self, entry: Entry) -> str:
        """The next version, to be signed: a newcomer, or a member in another role."""
        return self._next([entry], [])

    def without(self, name: str) -> str:
        return self._next([], [name])

    def _next(self, add: Sequence[Entry], remove: Sequence[str]) -> str:
        told = (self.federation, self.number + 1, self.head, self.needed, [asdict(one) for one in add], remove)
        return as_text(dict(zip(FIELDS, told, strict=True)))


def founding(federation: str, needed: int, founders: Iterable[Entry]) -> str:
    """The first version, to be signed by all whom it names."""
    return Members(federation, needed)._next(sorted(founders, key=lambda one: one.name), [])


def advance(members: Members, text: str) -> Members:
    """What this version makes of them; signatures are not looked at. Raises: StateError for one that breaks a rule."""
    found = read(text)
    number, add, remove = found["number"], found["add"], found["remove"]
    of = f"version {number} of the roster"
    if number != members.number + 1 or found["before"] != members.head:
        raise StateError(
            "a version of the roster does not follow the one before: another was there, or it was signed too late",
            found=f"version {number} upon {found['before'][:12] or 'nothing'}",
            expected=f"version {members.number + 1} upon {members.head[:12] or 'nothing'}",
        )
    if number and (found["federation"], found["needed"]) != (members.federation, members.needed):
        raise StateError(f"{of} changes what its founders have agreed on", found=f"{found['needed']} signatures")
    if number and len(add) + len(remove) != 1:
        raise StateError(f"{of} changes more than one member", found=f"{len(add)} new, {len(remove)} gone")
    entries, gone = {**members.entries}, members.gone
    for name in remove:
        if name not in entries:
            raise StateError(f"{of} removes one who is not on it", found=name)
        gone |= {name, entries.pop(name).key}
    for one in add:
        _check_new(of, entries, gone, one)
        if (one.role == KEEPER and number) or (one.role == MEMBER and not number):
            raise StateError(f"{of} has one in a role that cannot begin there", found=f"{one.name}, {one.role}")
        entries[one.name] = one
    approvers = [one for one in entries.values() if one.role != MEMBER]
    if len(approvers) > 1 and any(one.role == KEEPER for one in approvers):  # else it looks like members' own
        raise StateError(f"{of} has others approve beside whoever keeps the server, who would still add members alone")
    if not 1 <= found["needed"] <= len(approvers):
        raise StateError(
            f"{of} leaves too few who approve: nobody could come or go any more",
            found=f"{len(approvers)} approvers, {found['needed']} signatures needed",
            hint="approve another as approver first",
        )
    head = Version(text, {}).hash
    return replace(
        members,
        federation=found["federation"],
        needed=found["needed"],
        number=number,
        head=head,
        entries=entries,
        gone=gone,
        founding=members.founding or head,
    )


def _check_new(of: str, entries: Mapping[str, Entry], gone: frozenset[str], one: Entry) -> None:
    """Raises: StateError."""
    same = next((name for name, known in entries.items() if known.key == one.key and name != one.name), None)
    if same is not None:
        raise StateError(f"{of} has one key under two names", found=f"{same} and {one.name}: {mark(one.key)}")
    if {one.name, one.key} & gone:
        raise StateError(f"{of} brings back one who was removed", found=one.name, hint="another name, and a new key")
    known = entries.get(one.name)
    if known is not None and (known.key != one.key or known.role == one.role or KEEPER in (known.role, one.role)):
        raise StateError(f"{of} adds one who is on it already", found=one.name)


def voices(members: Members, text: str) -> Mapping[str, Entry]:
    """Whose signatures count for a version: of the first all founders', later the approvers' of the one before, and
    nobody's for itself. Raises: StateError."""
    add, remove = about(text)
    if members.number < 0:
        return {one.name: one for one in add}
    own = {*remove, *(one.name for one in add)}
    return {name: members.entries[name] for name in members.approvers if name not in own}


def signers(members: Members, version: Version) -> tuple[str, ...]:
    """Whose signatures on it count, and are their own. Raises: StateError."""
    may = voices(members, version.text)
    data = version.text.encode()
    return tuple(
        sorted(name for name, one in version.signatures.items() if name in may and is_by(may[name].key, one, data))
    )


def needed(members: Members, text: str) -> int:
    """Signatures. Raises: StateError."""
    return members.needed if members.number >= 0 else len(voices(members, text))


def take(members: Members, version: Version) -> Members:
    """Raises: StateError for a version that breaks a rule, or that too few have signed."""
    found = advance(members, version.text)
    may, by, enough = voices(members, version.text), signers(members, version), needed(members, version.text)
    if len(by) < enough:
        others = sorted({*version.signatures} - {*by})[:9]
        wrong = [f"{name}'s is {'not its own' if name in may else 'none that counts'}" for name in others]
        raise StateError(
            f"version {found.number} of the roster is not signed by enough of those who may",
            found="; ".join([f"{len(by)} that count", *wrong]),
            expected=f"{enough} of {', '.join(sorted(may)) or 'nobody'}",
        )
    add, remove = about(version.text)
    signed = {name: one for name, one in members.signed.items() if name not in remove}
    return replace(found, signed={**signed, **{one.name: by for one in add}})


def follow(versions: Iterable[Version]) -> Members:
    """What all of them come to, from the first on. Raises: StateError."""
    members = Members()
    for version in versions:
        members = take(members, version)
    return members


def extend(held: Sequence[Version], shown: Sequence[Version]) -> Members:
    """What is shown, where it goes on from what is held. Raises: StateError for a roster that has gone back, that is
    another from some version on, or that was not signed as it has to be."""
    if len(shown) < len(held):
        raise StateError(
            "it is older than the one held here: it has gone back",
            found=f"version {len(shown) - 1}",
            expected=f"version {len(held) - 1} or later",
        )
    for number, (mine, other) in enumerate(zip(held, shown, strict=False)):
        if mine.text != other.text:
            raise StateError(
                "it is another than the one held here",
                found=f"version {number} {other.hash[:12]}",
                expected=mine.hash[:12],
            )
    return follow([*held, *shown[len(held) :]])


def as_rows(members: Members) -> list[Sequence[str]]:
    """For a person who compares keys by telephone."""
    rows: list[Sequence[str]] = [("member", "organisation", "key", "role", "since", "signed by")]
    rows += [
        (name, one.organisation, mark(one.key), one.role, _day(one.since), ", ".join(members.signed.get(name, ())))
        for name, one in members.entries.items()
    ]
    return rows


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def who_adds(members: Members) -> str:
    """In a sentence, for whoever relies on it."""
    if members.number < 0:
        return "no roster is held here yet"
    if members.is_kept:
        return "whoever keeps the server signs the roster alone, and so can add members"
    names = ", ".join(members.approvers)
    return (
        f"members come and go by the signatures of {members.needed} of {names}; whoever keeps the server can add nobody"
    )

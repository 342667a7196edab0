"""What those do who approve members of a federation of sites: each signs the next version of the roster at their own
machine, with the key of their own membership. The server carries it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from konvoi.errors import FleetError, StateError
from konvoi.fleet.wire import dial
from konvoi.observe.wording import columns
from konvoi.security import members as rosters
from konvoi.security.identity import mark, own_key, public_of, sign_as
from konvoi.security.invitation import Invitation
from konvoi.security.members import Members
from konvoi.security.roster import FOUNDERS
from konvoi.security.version import APPROVER, KEEPER, MEMBER, Entry, Version, entry_of
from konvoi.sites.house import House
from konvoi.units import visible

SIGN = "konvoi federation approve-member"


def founding_of(invitation: Invitation) -> str:
    """Hash of the roster's first version, as this member was told; "" for a founder. Raises: StateError for one that
    its founders have not signed."""
    return _founded(invitation).head if invitation.founding else ""


def _founded(invitation: Invitation) -> Members:
    """Raises: StateError."""
    found = rosters.follow([Version.read(invitation.founding)])
    if found.federation != invitation.federation_id:
        raise StateError("the roster in this invitation is another federation's", found=found.federation)
    return found


def founders(invitation: Invitation) -> Iterator[str]:
    """Whom a member has to compare keys with, by telephone. Raises: StateError."""
    if not invitation.founding:
        yield f"{invitation.name} is a founder: when all have joined, `{SIGN}` shows what each of them signs"
        return
    found = _founded(invitation)
    yield f"founded by, {mark(found.head)} (compare it by telephone, with one that you know):"
    yield from columns([(f"  {name}", one.organisation, mark(one.key)) for name, one in found.entries.items()])
    yield rosters.who_adds(found)


def key_of(house: House) -> str:
    """What others compare by telephone; "" where there is none yet."""
    return mark(key) if (key := own_key(house.folder)) else ""


def members(house: House) -> Iterator[str]:
    """The roster that this site holds. Raises: StateError."""
    found = house.members()
    yield from columns(rosters.as_rows(found))
    yield rosters.who_adds(found)
    if found.number >= 0:
        yield f"version {found.number}, founded as {mark(found.founding)}"


def waiting(house: House, invitation: Invitation) -> Iterator[str]:
    """What waits for signatures, and how to give one's own. Raises: FleetError, StateError."""
    told = _ask(house, invitation)
    if told["founding"]:
        text = str(told["founding"])
        found = rosters.advance(Members(), text)
        yield "the founders sign each other:"
        yield from columns(
            [("", "organisation", "key"), *((n, e.organisation, mark(e.key)) for n, e in found.entries.items())]
        )
        yield f"from then on {found.needed} of them sign for each newcomer"
        yield f"signed by: {', '.join(_signed(told, '')) or 'nobody yet'}"
        yield f"when all see the same: {SIGN} {FOUNDERS} {mark(found.head)}"
    elif not house.versions():
        yield "not all founders have joined yet"
    newcomers = _waiting(told) if house.versions() else {}
    for name, one in newcomers.items():
        by = ", ".join(_signed(told, name)) or "nobody yet"
        yield f"{name} ({one.organisation or 'no organisation'}) waits; its key is {mark(one.key)}; signed by: {by}"
        yield f"  when {name} has said by telephone that it is so: {SIGN} {name} {mark(one.key)}"
    if house.versions() and not newcomers:
        yield "nobody waits"
    known = house.members().entries
    yield from (
        f"{name} is to go or to change: signed by {', '.join(_signed(told, name))}"
        for name in told["signed"]
        if name in known
    )


def approve(house: House, invitation: Invitation, name: str, key: str, *, approver: bool = False) -> str:
    """Sign that a newcomer with this key becomes a member, one who approves others if so wanted; or the founding.
    Returns how it stands. Raises: FleetError, StateError."""
    told, own = _ask(house, invitation), (house.folder / "key.pem").read_bytes()
    if name == FOUNDERS:
        text = str(told["founding"])
        if not text or house.versions():
            raise FleetError("there is nothing that founders have to sign", hint=SIGN)
        found = rosters.advance(Members(), text)
        _compare(name, found.head, key)
        me = found.entries.get(invitation.name)
        if me is None or me.key != public_of(own):
            raise StateError("the server shows founders among whom this site's key is not", found=invitation.name)
        if found.federation != invitation.federation_id:
            raise StateError("the server shows founders of another federation", found=found.federation)
    else:
        known = house.members()
        one = known.entries.get(name) if approver else None
        one = one or _waiting(told).get(name)
        if one is None:
            waits = ", ".join(_waiting(told)) or "nobody"
            what = "is a member already" if name in known.entries else "does not wait for approval"
            raise FleetError(f"{name} {what}", found=f"waiting: {waits}")
        _compare(name, one.key, key)
        text = known.adding(dataclasses.replace(one, role=APPROVER if approver else MEMBER))
    return _sign(house, invitation, own, text, "" if name == FOUNDERS else name)


def remove(house: House, invitation: Invitation, name: str) -> str:
    """Sign that a member is none any more. Returns how it stands. Raises: FleetError, StateError."""
    _ask(house, invitation)
    own = (house.folder / "key.pem").read_bytes()
    return _sign(house, invitation, own, house.members().without(name), name)


def _compare(name: str, known: str, given: str) -> None:
    """What was told by telephone and what the server shows. Raises: FleetError."""
    if given.replace(":", "").lower() == mark(known).replace(":", ""):
        return
    if given:
        raise FleetError(
            f"this is not what the server shows of {name}: it is not to be signed", found=given, expected=mark(known)
        )
    hint = f"ask by telephone, then: {SIGN} {name} {mark(known)}"
    raise FleetError("a signature is for a key that was compared", found=f"{name}: {mark(known)}", hint=hint)


def _ask(house: House, invitation: Invitation) -> Mapping[str, Any]:
    """How it stands at the server; the roster is taken in. Raises: FleetError, StateError."""
    told = dial.ask(invitation.desks, "/roster", {}, invitation.authority, house.folder)
    kinds = {"versions": list, "waiting": list, "founding": str, "signed": dict}
    if any(not isinstance(told.get(name), kind) for name, kind in kinds.items()) or not all(
        isinstance(by, list) for by in told["signed"].values()
    ):
        raise FleetError("an answer of the server makes no sense", found=str(told)[:60])
    if told["versions"] or house.versions():
        house.take_roster(told["versions"], founding_of(invitation))
    return told


def _waiting(told: Mapping[str, Any]) -> dict[str, Entry]:
    """Raises: StateError."""
    return {one.name: one for one in map(entry_of, told["waiting"]) if one.role != KEEPER}


def _signed(told: Mapping[str, Any], name: str) -> list[str]:
    return [visible(str(one)) for one in told["signed"].get(name, ())]


def _sign(house: House, invitation: Invitation, key: bytes, text: str, name: str) -> str:
    known = house.members()
    may = rosters.voices(known, text)
    if invitation.name not in may:
        who = ", ".join(may) or "nobody"
        raise FleetError("this site is not among those who approve that", found=invitation.name, expected=who)
    rosters.advance(known, text)
    if name == "":
        house.note_founding(text)
    body = {"text": text, "signature": sign_as(key, text.encode())}
    dial.ask(invitation.desks, "/sign", body, invitation.authority, house.folder)
    told = _ask(house, invitation)
    if house.members().head == Version(text, {}).hash:
        return f"signed by enough: version {house.members().number} of the roster"
    return f"signed by {', '.join(_signed(told, name))}; {rosters.needed(known, text)} of {', '.join(may)} have to"

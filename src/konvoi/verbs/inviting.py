"""Who may come to a federation, and who may no longer: what whoever keeps the server does about members."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from konvoi.errors import FleetError
from konvoi.observe.wording import columns
from konvoi.security import members as rosters
from konvoi.security.identity import Authority, mark
from konvoi.security.invitation import Invitation
from konvoi.security.roster import HOURS, Roster
from konvoi.security.signing import Signing
from konvoi.verbs.federation import LOG, Terms, with_port


def invite(
    folder: Path,
    member: str,
    *,
    hours: float = HOURS,
    out: Path | None = None,
    at: Sequence[str] = (),
    organisation: str = "",
) -> Path:
    """Write an invitation for one named member; returns its file. Raises: FleetError, StateError."""
    terms = Terms.read(folder)
    desks = with_port(at, terms.listen) or terms.desks
    if not desks:
        raise FleetError(
            "where members reach the desk is not known",
            hint="--at HOST:PORT here, or at `konvoi federation start`: an address that other machines can reach",
        )
    file = out or Path(f"{member}.invite")
    if file.exists():
        raise FleetError("there is such a file already", found=file)
    now = time.time()
    roster = Roster.open(folder / LOG)
    token = roster.invite(member, now, hours, organisation)
    first = roster.signing.versions[:1] if roster.signing is not None else []
    authority = (folder / "authority" / "certificate.pem").read_text()
    Invitation(
        terms.federation,
        terms.id,
        member,
        desks,
        authority,
        token,
        now + 3600 * hours,
        terms.recipe,
        terms.overrides,
        terms.plan,
        terms.hash,
        organisation,
        first[0].line() if first else "",
    ).write(file)
    return file


def revoke(folder: Path, member: str) -> str:
    """Nothing more is heard of it: by the desk at once, by members when they ask next. Returns what is left to do where
    members sign the roster. Raises: FleetError."""
    Terms.read(folder)
    roster = Roster.open(folder / LOG)
    roster.revoke(member, time.time())
    roster.settle(Authority.load(folder / "authority").key, time.time())
    signing = roster.signing
    if signing is None or member not in signing.members.entries:
        return ""
    by = f"{signing.needed} of {', '.join(signing.members.approvers)}"
    return f"{member} is shut out; it leaves the roster when {by} have run: konvoi federation remove-member {member}"


def reform(folder: Path, member: str) -> None:
    """Where a majority is gone for good: the convoy goes on as this member has it. Raises: FleetError."""
    Terms.read(folder)
    Roster.open(folder / LOG).reform(member, time.time())


def members(folder: Path) -> str:
    """By name and certificate, or key, for a person who compares them by telephone."""
    roster = Roster.open(folder / LOG)
    if roster.signing is not None:
        return "\n".join(_signed(roster, roster.signing))
    rows = [("member", "certificate", "")]
    rows += [(name, own, "has left" * (name in roster.left)) for name, own in sorted(roster.members.items())]
    return "\n".join(columns(rows))


def _signed(roster: Roster, signing: Signing) -> Iterator[str]:
    rows = [*rosters.as_rows(signing.members)]
    for name, one in signing.waiting(roster.revoked).items():
        by = ", ".join(signing.signed().get(name if signing.versions else "", [])) or "nobody yet"
        rows.append((name, one.organisation, mark(one.key), "waits to be approved", "", by))
    yield from columns(rows)
    yield from (f"{name} has left" for name in sorted(roster.left))
    yield from (f"{name} is shut out" for name in sorted(roster.revoked) if name in signing.members.entries)
    yield rosters.who_adds(signing.members)
    if signing.versions:
        yield f"version {signing.members.number}, founded as {mark(signing.members.founding)}"

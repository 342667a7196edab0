"""A federation at its server: founded, served, and how it stands. No limits on data are kept here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from konvoi.errors import FleetError, StateError
from konvoi.plan.convoy import Plan
from konvoi.plan.presets import parse
from konvoi.security.roster import DESK, Roster
from konvoi.security.version import NAME
from konvoi.state.journal import write
from konvoi.verbs.running import stop_signals

PORT = 7700
ROOT = Path("federations")
LOG = "roster.jsonl"
LOOK_S = 1.0


@dataclass(frozen=True)
class Terms:
    """What a federation is founded on; in `federations/NAME/terms.json`."""

    federation: str
    id: str
    recipe: str  # the file's name
    overrides: tuple[str, ...]
    plan: str
    num_first: int
    desks: tuple[str, ...]
    listen: str
    hash: str

    @property
    def is_of_sites(self) -> bool:
        """Whether its members have data of their own, and runs come in packs."""
        return not self.recipe

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(folder / "terms.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Terms:
        """Raises: StateError where there is no federation."""
        try:
            found = json.loads((folder / "terms.json").read_text())
            return cls(**{**found, "overrides": tuple(found["overrides"]), "desks": tuple(found["desks"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            known = ", ".join(sorted(path.parent.name for path in ROOT.glob("*/terms.json"))) or "none"
            raise StateError("there is no such federation here", found=f"{folder}: {error}", expected=known) from None


def terms_of(recipe: Path, overrides: Sequence[str], plan: str, id: str) -> str:
    """The hash of all that decides what is learnt: code is never sent, so every member has it already.

    Raises: FleetError where the recipe cannot be read.
    """
    import konvoi

    try:
        code = recipe.read_bytes()
    except OSError as error:
        raise FleetError("the recipe cannot be read", found=f"{recipe}: {error.strerror}") from None
    told = repr((hashlib.sha256(code).hexdigest(), tuple(overrides), plan, id, konvoi.__version__))
    return hashlib.sha256(told.encode()).hexdigest()


def found(
    recipe: Path,
    overrides: Sequence[str],
    plan: str,
    *,
    name: str | None = None,
    num_first: int = 2,
    listen: str = f"0.0.0.0:{PORT}",
    at: Sequence[str] = (),
) -> Path:
    """Found a federation, or go on with the one of that name; returns its folder. Raises: FleetError, StateError."""
    name = name or recipe.stem.replace("_", "-").lower()
    _check_name(name)
    if num_first < 2:
        raise FleetError("training begins with two members or more", found=num_first)
    if len(deciders := deciders_of(plan)) > num_first:
        raise FleetError("deciders are among the first members", found=", ".join(deciders), expected=num_first)
    _host_and_port(listen)
    desks = with_port(at, listen)
    folder = ROOT / name
    if (folder / "terms.json").exists():
        known = Terms.read(folder)
        same = terms_of(recipe, overrides, plan, known.id) == known.hash
        if not same:
            hint = "--name for another federation, or the recipe and plan as they were"
            raise FleetError("this federation was founded on other terms", found=name, hint=hint)
        if desks and desks != known.desks:
            Terms(**{**asdict(known), "desks": desks, "listen": listen}).write(folder)
        return folder
    id = _found(folder, name)
    hash = terms_of(recipe, overrides, plan, id)
    Terms(name, id, recipe.name, tuple(overrides), plan, num_first, desks, listen, hash).write(folder)
    return folder


def found_for_sites(
    name: str,
    *,
    listen: str = f"0.0.0.0:{PORT}",
    at: Sequence[str] = (),
    founders: Sequence[str] = (),
    approvals: int = 0,
) -> Path:
    """Found a federation whose members keep their data, or go on with the one of that name: a roster, and a history of
    runs; what they are of comes in packs. Returns its folder.

    `founders`: names of the members who sign the roster, and `approvals` of them each newcomer (0: more than half);
    without them whoever keeps the server signs it alone. Raises: FleetError, StateError.
    """
    _check_name(name)
    _host_and_port(listen)
    desks, folder = with_port(at, listen), ROOT / name
    if (folder / "terms.json").exists():
        known = Terms.read(folder)
        if not known.is_of_sites:
            raise FleetError("this federation is of machines that train one recipe", found=name, hint="--name another")
        signing = Roster.open(folder / LOG).signing
        if founders and (signing is None or {*founders} != {*signing.founders}):
            told = ", ".join(signing.founders) if signing is not None else "nobody"
            raise FleetError("this federation was founded by others", found=", ".join(founders), expected=told)
        if approvals and signing is not None and approvals != signing.needed:
            raise FleetError("as many approve as the founders have signed", found=approvals, expected=signing.needed)
        Terms(**{**asdict(known), "desks": desks or known.desks, "listen": listen}).write(folder)
        return folder
    id = _found(folder, name)
    _found_roster(folder, id, founders, approvals or len(founders) // 2 + 1)
    Terms(name, id, "", (), "", 0, desks, listen, hashlib.sha256(f"sites {id}".encode()).hexdigest()).write(folder)
    return folder


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise FleetError("a federation's name is like a host's", found=repr(name), expected="letters, digits, - and .")


def _found(folder: Path, name: str) -> str:
    """The authority of a new federation, and its desk's certificate; returns its id."""
    from konvoi.security.identity import Authority

    id = secrets.token_hex(8)
    authority = Authority.make(f"{name} {id}")
    authority.save(folder / "authority")
    authority.issue(DESK).save(folder / DESK)
    return id


def _found_roster(folder: Path, id: str, founders: Sequence[str], needed: int) -> None:
    from konvoi.security.identity import Authority, public_of

    authority, roster = Authority.load(folder / "authority"), Roster.open(folder / LOG)
    kept = {} if founders else {"key": public_of(authority.certificate)}
    roster.found(id, time.time(), tuple(founders), needed if founders else 1, **kept)
    roster.settle(authority.key, time.time())


def deciders_of(plan: str) -> tuple[str, ...]:
    parsed = parse(plan)
    return parsed.convoy.deciders if isinstance(parsed, Plan) else ()


def serve(folder: Path, say: Callable[[str], None], until: threading.Event) -> None:
    """Keep the desk, and the runs of sites, until the event, SIGINT or SIGTERM; `status.json` beside it is written as
    things change."""
    from konvoi.fleet.desk import Desk

    terms, roster = Terms.read(folder), Roster.open(folder / LOG)
    address = _host_and_port(terms.listen)
    with contextlib.ExitStack() as stack:
        hall = None
        begins: dict[str, Any] = {"num_first": terms.num_first, "needed": deciders_of(terms.plan)}
        if terms.is_of_sites:
            from konvoi.security.identity import Authority
            from konvoi.sites.hall import Hall  # loads torch

            if roster.signing is None:
                hint = "found another, and invite its members anew"
                raise StateError(
                    "this federation's roster was signed by nobody: it is of an earlier version", hint=hint
                )
            roster.settle(Authority.load(folder / "authority").key, time.time())  # it may have ended in mid-enrolment
            hall = stack.enter_context(Hall(folder, roster, say=say))
            begins = {"num_first": 1 << 30, "frames": hall}  # sites do not begin together
        desk = stack.enter_context(Desk(folder, roster, terms=terms.hash, address=address, say=say, **begins))
        say(f"the desk of {terms.federation} listens at {address[0]}:{desk.port}")
        if not roster.members and not roster.invited:
            say(f"invite members with: konvoi federation invite NAME --federation {terms.federation}")
        with stop_signals() as got:  # an exception at any line might be lost in somebody's clean-up
            while not got and not until.wait(LOOK_S):
                roster.refresh()
                told = {"at": time.time(), **desk.status(), **({"hall": hall.status()} if hall else {})}
                new = folder / "status.json.new"
                new.write_text(json.dumps(told, indent=1))
                new.replace(folder / "status.json")
    if got and got[0] == signal.SIGINT:
        raise KeyboardInterrupt("members train on; the same command opens the desk again")
    if got:
        raise SystemExit(128 + got[0])


def status(folder: Path) -> dict[str, Any]:
    """What the desk has last written down. Raises: StateError where it never ran."""
    terms = Terms.read(folder)
    try:
        told = json.loads((folder / "status.json").read_text())
    except OSError:
        raise StateError("this desk has never run", hint=f"konvoi federation start {terms.recipe}") from None
    return {"federation": terms.federation, **told}


def find(name: str | None) -> Path:
    """The folder of a federation that was founded here; without a name the only one. Raises: StateError."""
    if name is not None:
        Terms.read(ROOT / name)
        return ROOT / name
    known = sorted(path.parent for path in ROOT.glob("*/terms.json"))
    if len(known) != 1:
        names = ", ".join(path.name for path in known) or "none"
        raise StateError("which federation?", found=names, hint="--federation NAME")
    return known[0]


def with_port(at: Sequence[str], listen: str) -> tuple[str, ...]:
    """Where no port is given, it is the desk's own."""
    port = _host_and_port(listen)[1]
    return tuple(one if ":" in one.rpartition("]")[2] else f"{one}:{port}" for one in at)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise FleetError("an address is HOST:PORT", found=repr(text), expected=f"0.0.0.0:{PORT}")
    return host.strip("[]"), int(port)

"""What people at a site do: join, review, approve, pause, look at what has left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from konvoi.errors import FleetError, StateError
from konvoi.fleet.wire import dial
from konvoi.job.adapt import APPROXIMATE, EXACT
from konvoi.job.data.normalized import in_words
from konvoi.observe.wording import columns
from konvoi.security import outbox as outboxes
from konvoi.security import pack as packs
from konvoi.security.invitation import Invitation
from konvoi.security.members import who_adds
from konvoi.security.pack import Pack, difference
from konvoi.sites import house as houses
from konvoi.sites.house import House
from konvoi.units import visible
from konvoi.verbs.approving import founding_of, key_of
from konvoi.verbs.member import ROOT
from konvoi.verbs.running import stop_signals


def find(federation: str | None = None) -> tuple[House, Invitation]:
    """This machine's membership in a federation of sites, NAME or NAME/SITE; without a name the only one. Those that it
    has left count where there is no other: what has left can be looked at still. Raises: StateError."""
    name, _, site = (federation or "").partition("/")
    paths = sorted(ROOT.glob(f"{name or '*'}/{site or '*'}/invitation.json"))
    known = [(path.parent, found) for path in paths if not (found := Invitation.read(path.read_text())).plan]
    known = [one for one in known if not (one[0] / "left").exists()] or known
    if len(known) != 1:
        names = ", ".join(f"{one.federation}/{one.name}" for _, one in known) or "none"
        hint = "--federation NAME/SITE" if known else "konvoi join INVITATION --data PATH"
        raise StateError("which federation?", found=names, hint=hint)
    return House(known[0][0]), known[0][1]


def run(
    invitation: Invitation,
    folder: Path,
    data: Path,
    say: Callable[[str], None],
    *,
    device: str = "cpu",
    threads: int = 0,
    until: threading.Event | None = None,
) -> None:
    """Take part in every run that is approved here, until a person stops this. Raises: DataError, StateError."""
    from konvoi.sites.site import Here, Site

    if not data.exists():
        raise FleetError("there are no data", found=data, hint="--data PATH: a site's own, which stay where they are")
    house = House(folder)
    if house.has_left:
        raise StateError("this site has left the federation", found=invitation.federation, hint="a new invitation")
    here = Here(
        invitation.name,
        invitation.federation,
        invitation.federation_id,
        founding_of(invitation),
        data.resolve(),
        device,
        threads,
    )
    site = Site(here, house, dial.Dial(invitation.desks, invitation.authority, folder), say)
    say(f"{invitation.name} of {invitation.federation}: waits for runs; data at {data} stay there")
    until = until or threading.Event()
    with _alone(folder), stop_signals() as got:
        stopping = threading.Thread(target=_set_when, args=(until, got), daemon=True)
        stopping.start()
        site.run(until)
    if got and got[0] == signal.SIGINT:
        raise KeyboardInterrupt("the same command comes back")
    if got:
        raise SystemExit(128 + got[0])


def _set_when(until: threading.Event, got: list[int]) -> None:
    while not until.wait(0.1):
        if got:
            until.set()


class _alone:
    """One agent of a site at a time: two would answer for it differently."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.lock"

    def __enter__(self) -> None:
        import fcntl

        self.file = self.path.open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError("this site's agent runs already", found=self.path) from None
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()


# -- consent -----------------------------------------------------------------------------------------------------------


def review(house: House, which: str) -> Iterator[str]:
    """What a person should know before they agree, line by line. `which`: a file, a pack's name, or the beginning of
    its hash; "": the one that waits. Raises: StateError."""
    return map(visible, _review(house, *_pack(house, which)))


def _review(house: House, pack: Pack, signer: str) -> Iterator[str]:
    from konvoi.sites.protocol import convoy_of

    approved, plan = house.approved(), convoy_of(pack.plan, {})
    assert plan.local is not None
    yield f"pack      {pack.name}, {pack.hash}"
    yield f"purpose   {pack.purpose}"
    yield f"signed by {signer}"
    others = [one for one in house.signers(pack.hash) if one != signer]
    yield from (f"also here signed by {one}" for one in others)
    at = approved.get(pack.hash)
    yield f"approved  {'no' if at is None else time.strftime('%Y-%m-%d', time.localtime(at))}"
    yield from _of_agreement(house, pack)
    yield f"plan      {plan.rounds} rounds, {_of_a_round(pack)}"
    yield from _how_samples_are_normalised(house, pack)
    yield from (f"adapters  their mean is {told}" for told in _how_adapters_are_averaged(pack))
    for name, (low, high) in pack.ranges.items():
        yield f"open      {name} may be {low:g} to {high:g} without asking again"
    yield f"needs     {', '.join(f'{name} {version}' for name, version in pack.requires.items())}"
    yield f"roster    {_of_roster(house)}"
    if wrong := house.limits.forbid(plan.local, plan.rounds, signer):
        yield f"forbidden by this site's limits: {'; '.join(wrong)}"
    yield ""
    yield "What leaves, and nothing else can:"
    yield from columns(pack.leaves.as_rows())
    size = pack.leaves.frame("update").size
    yield f"An update is {size:,} bytes; all rounds together {size * plan.rounds:,}."
    yield ""
    last = house.last_approved(but=pack.hash)
    of = "nothing: none was approved before" if last is None else f"{last.name} {last.hash[:12]}, approved last"
    yield f"Difference to {of}"
    yield from difference(last, pack)
    yield ""
    if pack.hash not in approved:
        which = f"{pack.hash}.{signer[:12]}" if others else pack.hash[:12]
        yield f"To agree: konvoi federation approve {which}"


def _of_roster(house: House) -> str:
    members = house.members()
    of = f"version {members.number}, {len(members.sites)} sites; " if members.number >= 0 else ""
    return of + who_adds(members)


def _of_agreement(house: House, pack: Pack) -> Iterator[str]:
    joined = house.joined(pack)
    if rounds := house.rounds(pack):
        of = ", ".join(f"{one['rounds']} of {one['id']}" for one in joined) or "none of any run yet"
        yield f"agreed to {rounds} rounds of all its runs together: {of}"
    yield "          a run that goes beyond what was agreed to waits until a person approves the pack again"


def _of_a_round(pack: Pack) -> str:
    local = pack.plan.get("local", {})
    told = ", ".join(f"{name} {value}" for name, value in local.items())
    return told or "one epoch each"


def _how_samples_are_normalised(house: House, pack: Pack) -> Iterator[str]:
    if not pack.statistics:
        return
    asked = pack.statistics["survey"]
    was_agreed = any(one["pack"] == asked and one["what"] == "approved" for one in house.consents())
    of = f"survey {asked[:12]}, " + ("which was approved here" if was_agreed else "which nobody here has agreed to")
    for name, one in pack.statistics["columns"].items():
        yield f"normal    {name}: {in_words(one)}"
    told = f"by {of}" if asked else "by no survey"
    yield f"          as {pack.statistics['samples']:,} samples have told, {told}: the word of whoever signed it"


def _how_adapters_are_averaged(pack: Pack) -> Iterator[str]:
    """As the list tells: where A stays as it is drawn, it does not leave; nor where it is each site's own."""
    names = " ".join(field.name for field in pack.leaves.frame("update").fields)
    if ".lora_B." in names and ".lora_A." in names:
        yield APPROXIMATE
    elif ".lora_B." in names and not pack.plan["local"].get("personal"):
        yield EXACT


def _pack(house: House, which: str) -> tuple[Pack, str]:
    return house.take_in(Path(which)) if which and Path(which).is_file() else house.pack(which)


def approve(house: House, which: str) -> Pack:
    """Agree to a pack, as it is. Raises: StateError where this site's limits forbid it."""
    pack, signer = _pack(house, which)
    house.approve(pack, signer)
    return pack


def withdraw(house: House, which: str) -> Pack:
    """Take agreement back: no further round is trained. Raises: StateError."""
    approved = house.approved()
    if not approved:
        raise StateError("no pack is approved here", found=which or None)
    pack, _ = house.pack(which or next(reversed(approved)), approved=True)
    house.withdraw(pack)
    return pack


def leave(house: House, invitation: Invitation) -> None:
    """At once, and for good: the agent ends, the server forgets this site. Raises: FleetError where it cannot be told;
    the agent has ended all the same."""
    from konvoi.state.journal import write

    write(house.folder / "left", b"")
    dial.ask(invitation.desks, "/leave", {}, invitation.authority, house.folder)


# -- what has left -----------------------------------------------------------------------------------------------------


def outbox(house: House, *, kinds: tuple[str, ...] = (), as_json: bool = False) -> Iterator[str]:
    """What has left, an entry a line; the chain is checked on the way. Raises: StateError where it was changed."""
    entries = [*outboxes.read(house.folder / "outbox.jsonl")]
    shown = [one for one in entries if not kinds or one.kind in kinds]
    if as_json:
        yield from (one.line() for one in shown)
        return
    yield from columns(outboxes.as_rows(shown))
    total: dict[str, list[int]] = {}
    for one in entries:
        counted = total.setdefault(one.kind, [0, 0])
        counted[0], counted[1] = counted[0] + 1, counted[1] + one.size
    yield ""
    for kind, (number, size) in total.items():
        yield f"{kind}: {number:,} times, {size:,} bytes"
    yield f"{sum(one.size for one in entries):,} bytes have left in all; the chain of {len(entries):,} entries is whole"


def held(house: House) -> Iterator[str]:
    """Updates that wait for a person."""
    for path in house.held():
        yield f"{path.stem}  {path.stat().st_size:,} bytes  {path}"


def release(house: House, which: str) -> None:
    """Let one go, or all. Raises: StateError."""
    found = [path for path in house.held() if which == "all" or path.stem.startswith(which)]
    if not found:
        raise StateError(
            "no such update waits here", found=which, expected=", ".join(one.stem for one in house.held()) or "none"
        )
    for path in found:
        houses.release(path)


def status(house: House, invitation: Invitation) -> Iterator[str]:
    """How this site stands, from what lies here; nothing is asked of anybody."""
    state = "has left" if house.has_left else "is paused" if house.is_paused else "takes part"
    yield f"{invitation.name} of {invitation.federation} {state}; its key is {key_of(house)}"
    yield f"roster: {_of_roster(house)}"
    approved = house.approved()
    for path in sorted((house.folder / "packs").glob("*.pack")):
        pack, _ = packs.read(path)
        yield f"pack {pack.name} {pack.hash[:12]}: {'approved' if pack.hash in approved else 'not approved'}"
    for known in sorted(house.folder.glob("runs/*/known.json")):
        told: dict[str, Any] = json.loads(known.read_text())
        yield f"run {known.parent.name}: round {told['round']}"
    yield from (f"held: {line}" for line in held(house))

"""join, by invitation: this machine becomes a member of a federation, and trains its island."""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from konvoi.errors import FleetError, PlanError, StateError
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import Local, local
from konvoi.fleet.wire import dial
from konvoi.job.job import Job, prepare
from konvoi.plan.convoy import Plan
from konvoi.plan.sync.messages import Decision
from konvoi.security.invitation import Invitation
from konvoi.state import record
from konvoi.task import Federation, Membership
from konvoi.verbs.federation import terms_of
from konvoi.verbs.islands import OneIsland, check, run_all
from konvoi.verbs.running import Keeping, Recording, checked, how_soon, stop_signals

ROOT = Path("memberships")
LOOK_S = 1.0


def enlist(invitation: Invitation, recipe: Path | None, say: Callable[[str], None]) -> Path:
    """Make a key here, which stays here, and have it signed; returns the federation's folder on this machine. Where
    that was done before, nothing is asked.

    Raises: FleetError where the recipe here is another one, or the desk refuses.
    """
    from konvoi.security.identity import Identity, ask, fingerprint, mark, public_of

    folder = ROOT / invitation.federation
    if recipe is not None:  # else it is a federation of sites: recipes come in packs
        _check_recipe(invitation, recipe)
    if (folder / invitation.name / "certificate.pem").exists():
        known = Invitation.read((folder / invitation.name / "invitation.json").read_text())
        if known.federation_id != invitation.federation_id:
            hint = "move that folder away, if its federation is no more"
            raise FleetError("another federation of this name was joined here", found=folder, hint=hint)
        return folder
    if time.time() > invitation.expires:
        raise FleetError("this invitation has expired", hint="ask for another one")
    key, request = ask(invitation.name)
    body = {
        "name": invitation.name,
        "token": invitation.token,
        "request": request.decode(),
        "terms": invitation.terms,
    }
    told = dial.ask(invitation.desks, "/enrol", body, invitation.authority)
    certificate = str(told.get("certificate")).encode()
    _check_certificate(certificate, invitation.name, key)
    (folder / invitation.name).mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = dataclasses.replace(invitation, token="")  # it was used
    (folder / invitation.name / "invitation.json").write_text(kept.as_text())
    Identity(invitation.name, certificate, key, invitation.authority.encode()).save(folder / invitation.name)
    own = f"the certificate is {fingerprint(certificate)}" if invitation.plan else f"the key is {mark(public_of(key))}"
    say(f"joined {invitation.federation} as {invitation.name}; {own}")
    return folder


def _check_certificate(certificate: bytes, name: str, key: bytes) -> None:
    """Raises: FleetError for one that is not of this key and name."""
    from konvoi.security.identity import mark, name_of, public_of

    try:
        found = (name_of(certificate), mark(public_of(certificate)))
    except ValueError as error:
        raise FleetError("what the desk has answered is no certificate", found=str(error)[:60]) from None
    if found != (wanted := (name, mark(public_of(key)))):
        raise FleetError("the desk's certificate is not for this member's key", found=found, expected=wanted)


def plan_here(plan: str, island: str) -> str:
    """A federation's plan, with an island of this machine's own.

    Raises: PlanError where more than the island is told.

    >>> plan_here("|diloco,every=50", "fsdp=2")
    'fsdp=2|diloco,every=50'
    """
    if "|" in island:
        raise PlanError("the convoy is the federation's; a machine has its island alone", found=repr(island))
    own, _, convoy = plan.partition("|")
    wide = ["precision=fp64" in text.replace(" ", "") for text in (island or own, own)]
    if wide[0] != wide[1]:
        raise PlanError("all islands agree in float64, or none does", found=repr(island), expected=repr(own))
    return f"{island or own}|{convoy}"


def _check_recipe(invitation: Invitation, recipe: Path) -> None:
    if invitation.terms != terms_of(recipe, invitation.overrides, invitation.plan, invitation.federation_id):
        raise FleetError(
            "the recipe here is not the federation's",
            found=recipe,
            hint=f"the same {invitation.recipe}, byte for byte, and the same version of konvoi: code is never sent",
        )


def wait_for_the_beginning(
    invitation: Invitation, folder: Path, say: Callable[[str], None], should_stop: Callable[[], int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """With whom training has begun, and who is there now.

    Raises: FleetError; KeyboardInterrupt after a stop that was asked for.
    """
    identity, last = folder / invitation.name, ""
    while not should_stop():
        try:
            body = {"terms": invitation.terms, "address": "", "facts": {}}
            told = dial.ask(invitation.desks, "/meet", body, invitation.authority, identity)
        except dial.Unreached as error:
            line = f"{error.message}; trying again ({error.found})"
        else:
            if told["begun"]:
                return tuple(map(str, told["begun"])), tuple(map(str, told["here"]))
            line = f"waiting for members: {len(told['here'])} of {told['num_first']} are here"
        if line != last:
            say(line)
        last = line
        time.sleep(LOOK_S)
    raise KeyboardInterrupt("the same command comes back")


def train_member(
    invitation: Invitation,
    folder: Path,
    job: Job,
    plan: Plan,
    keeping: Keeping,
    preload: tuple[str, ...],
    *,
    public: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> record.Record:
    """Train this machine's island until the convoy's last step. Raises: what training raises."""
    if alone := plan.convoy.what_only_train_can:
        raise PlanError("a federation agrees on moves, and has no servers, so far", found=alone)
    if plan.convoy.partners == "pairs":
        raise PlanError("a federation agrees all with all, so far", found="gossip", hint="kv.local_sgd(every=8)")
    mine = record.Record(folder / invitation.name)
    with mine.alone(), AgentHandle(preload) as agent, stop_signals() as stop:  # two of one name would vote twice
        prepared = prepare(job)  # while the agent loads torch
        each, machine = plan.island.num_workers, agent.hello()["machine"]
        if each > machine["num_cores"]:  # the others count on this island as soon as it has said that it is here
            found = f"{each} workers, {machine['num_cores']} cores"
            raise PlanError("an island has a core for each worker", found=found, hint="a smaller --plan")
        begun, here_now = wait_for_the_beginning(invitation, folder, say, lambda: how_soon(stop))
        contacts = tuple(sorted({*begun, *here_now} - {invitation.name}))
        batch = check(job, prepared, plan, Local(each, islands=max(2, len(begun))))
        is_first = invitation.name in begun
        lease = batch * plan.convoy.steps_per_round
        membership = Membership(
            invitation.name,
            plan.convoy,
            Decision.first(begun, plan.convoy.voters(begun), lease) if is_first else Decision.unknown(contacts),
            batch,
            batch * len(begun),
            len(begun),
            f"{invitation.federation} {invitation.terms}",
            folder.resolve(),
            address="0.0.0.0",
            federation=Federation(invitation.desks, invitation.authority, invitation.terms, public),
        )
        here = record.create(keeping.root, keeping.name)
        with here.alone():
            fleet = local(each, device="cpu")
            task = checked(prepared, plan.island, each, here, keeping, fleet.device_kind(machine), batch=batch)
            lines = (*task.derived, *plan.convoy.derived(batch, prepared.num_steps))
            task = dataclasses.replace(task, membership=membership, derived=lines)
            with Recording(here, task, keeping.sinks) as recording:
                where = f"{invitation.name} of {invitation.federation}, on {socket.gethostname()}"
                recording.begin(where, machine)
                one = OneIsland(invitation.name, task, agent, recording)
                run_all([one], fleet, lambda: how_soon(stop))
    if stop and one.outcome is not None and one.outcome.reason == "stopped":
        saved = "the others train on; `konvoi join` with the same file comes back"
        raise KeyboardInterrupt(saved) if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
    return here


def leave(federation: str) -> None:
    """Tell the desk that this machine's members will not come back. Raises: FleetError, StateError."""
    found = sorted((ROOT / federation).glob("*/invitation.json"))
    if not found:
        known = ", ".join(sorted(path.name for path in ROOT.glob("*"))) or "none"
        raise StateError("this machine is no member of that federation", found=federation, expected=known)
    for path in found:
        one = Invitation.read(path.read_text())
        dial.ask(one.desks, "/leave", {}, one.authority, path.parent)


def status(federation: str) -> dict[str, object]:
    """What the desk knows, asked by a member. Raises: FleetError, StateError."""
    found = sorted((ROOT / federation).glob("*/invitation.json"))
    if not found:
        raise StateError("this machine is no member of that federation", found=federation)
    one = Invitation.read(found[0].read_text())
    told = dial.ask(one.desks, "/status", {}, one.authority, found[0].parent)["status"]
    return {"federation": federation, "at": time.time(), **told}

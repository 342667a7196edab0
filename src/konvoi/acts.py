"""`konvoi join` and `konvoi federation ACT`: the acts of whoever keeps a server, and of people at a site."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import konvoi
from konvoi.errors import FleetError, KonvoiError, PlanError
from konvoi.plan.convoy import Plan
from konvoi.recipe import check_there, load_recipe, override, recipe_job
from konvoi.site_acts import AT_SITE, is_site
from konvoi.talk import line, lines, out, sinks

Options = argparse.Namespace


def join(options: Options) -> None:
    from konvoi.verbs.running import Keeping, require_net

    require_net("a federation")
    from konvoi.security.invitation import Invitation
    from konvoi.verbs import member
    from konvoi.verbs.train import PRELOAD

    invitation = Invitation.load(options.invitation)
    if not invitation.plan:
        from konvoi.sites.house import House
        from konvoi.verbs import approving, site

        if options.data is None:
            hint = "--data PATH: this site's own, which stay where they are"
            raise FleetError("a site of this federation brings data", hint=hint)
        for told in approving.founders(invitation):  # refused before anything is asked of anybody
            line(told)
        folder = member.enlist(invitation, None, line) / invitation.name
        if options.hold is not None:
            House(folder).hold_updates(options.hold)
        site.run(invitation, folder, options.data, line, device=options.device or "cpu")
        return
    if options.hold is not None:
        raise FleetError("what is held are updates of sites whose data stay there", found=f"--hold {options.hold}")
    plan = _convoy_plan(member.plan_here(invitation.plan, options.plan))
    recipe = options.recipe or Path(invitation.recipe)
    folder = member.enlist(invitation, recipe, line)
    job = override(recipe_job(load_recipe(recipe), recipe), invitation.overrides)
    keeping = Keeping(options.name, Path("runs"), False, None, 2, False, sinks(options))
    run = member.train_member(invitation, folder, job, plan, keeping, PRELOAD, public=options.address, say=line)
    line(f"report: {run.folder / 'report.html'}")


def federation(options: Options) -> None:
    from konvoi.verbs.running import require_net

    require_net("a federation")
    ACTS[options.act](options)


# -- of whoever keeps the server ---------------------------------------------------------------------------------------


def _start(options: Options) -> None:
    from konvoi.verbs import federation

    if options.recipe is None:
        if not options.name or options.plan:
            hint = "start RECIPE --plan PLAN, or start --name NAME for sites that keep their data"
            raise FleetError("a federation has a recipe, or a name", hint=hint)
        founders = [one for one in options.founders.split(",") if one]
        if options.approvals and not founders:
            raise FleetError(
                "founders approve newcomers", found=f"--approvals {options.approvals}", hint="--founders A,B"
            )
        given = {"founders": founders, "approvals": options.approvals}
        folder = federation.found_for_sites(options.name, listen=options.listen, at=options.at, **given)
    else:
        if options.founders or options.approvals:
            hint = "machines of one's own: whoever keeps the desk lets them in; start --name NAME for sites"
            raise FleetError("founders are of federations of sites", found=f"--founders {options.founders}", hint=hint)
        plan = _convoy_plan(options.plan)
        if plan.convoy.local is not None:
            hint = f"konvoi federation pack {options.recipe}, and start --name NAME"
            raise PlanError("a plan of clients with data of their own comes in a pack", found=options.plan, hint=hint)
        check_there(options.recipe)
        job = override(recipe_job(load_recipe(options.recipe), options.recipe), options.overrides)
        if job.global_batch % options.members:  # or nobody could join
            found = f"global_batch={job.global_batch}, --members {options.members}"
            raise PlanError("the first members share the global batch alike", found=found)
        terms = {"name": options.name, "num_first": options.members, "listen": options.listen, "at": options.at}
        folder = federation.found(options.recipe, options.overrides, options.plan, **terms)
    federation.serve(folder, line, threading.Event())


def _convoy_plan(text: str) -> Plan:
    plan = konvoi.plan.parse(text)
    if not isinstance(plan, Plan):
        raise PlanError("a federation's plan has a convoy", found=repr(text), expected="'|diloco,every=50'")
    return plan


def _here(options: Options) -> Path:
    from konvoi.verbs import federation

    return federation.find(options.federation)


def _invite(options: Options) -> None:
    from konvoi.verbs import inviting

    given = {"hours": options.hours, "out": options.out, "at": options.at, "organisation": options.organisation}
    out(str(inviting.invite(_here(options), options.member, **given)))


def _status(options: Options) -> None:
    from konvoi.verbs import federation, member, site
    from konvoi.verbs.standing import as_table

    if not options.federation or (federation.ROOT / options.federation).exists():
        try:
            told = federation.status(federation.find(options.federation))
        except KonvoiError:
            if not is_site(options):
                raise
        else:
            out(json.dumps(told, indent=1) if options.json else as_table(told, time.time()))
            return
    if is_site(options):
        lines(site.status(*site.find(options.federation)))
        return
    told = member.status(options.federation)
    out(json.dumps(told, indent=1) if options.json else as_table(told, time.time()))


def _members(options: Options) -> None:
    from konvoi.verbs import approving, federation, inviting, site

    try:
        folder = federation.find(options.federation)
    except KonvoiError:
        if not is_site(options):
            raise
        lines(approving.members(site.find(options.federation)[0]))
    else:
        out(inviting.members(folder))


def _revoke(options: Options) -> None:
    from konvoi.verbs import inviting

    if left := inviting.revoke(_here(options), options.member):
        line(left)


def _reform(options: Options) -> None:
    from konvoi.verbs import inviting

    inviting.reform(_here(options), options.member)


def _pack(options: Options) -> None:
    from konvoi.verbs.packing import pack, pack_survey

    check_there(options.recipe)
    if options.survey:
        given = {"purpose": options.purpose, "overrides": options.overrides, "bins": options.bins}
        path, made = pack_survey(options.recipe, **given, key=options.key, out=options.out)
        line(f"{made.name} {made.hash}: an answer is {made.leaves.frame('update').size:,} bytes")
        out(str(path))
        return
    path, made = pack(
        options.recipe,
        purpose=options.purpose,
        plan=options.plan,
        overrides=options.overrides,
        ranges=dict(map(_range, options.range)),
        tell=tuple(one for one in options.tell.split(",") if one and one != "nothing"),
        start_from=options.start_from,
        statistics=options.statistics,
        key=options.key,
        out=options.out,
    )
    line(f"{made.name} {made.hash}: an update is {made.leaves.frame('update').size:,} bytes")
    out(str(path))


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError:
        raise PlanError("a range is NAME=LOW:HIGH", found=text, expected="epochs=1:5") from None


def _submit(options: Options) -> None:
    from konvoi.verbs import runs

    settings = {}
    for text in options.set:
        name, _, value = text.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise PlanError("a setting is NAME=NUMBER", found=text, expected="epochs=2") from None
    out(runs.submit(_here(options), options.pack, settings=settings, first=options.first, least=options.least))


def _runs(options: Options) -> None:
    from konvoi.verbs import runs

    found = runs.runs(_here(options))
    out(json.dumps(found, indent=1) if options.json else runs.as_table(found))


def _stop(options: Options) -> None:
    from konvoi.verbs import runs

    runs.stop(_here(options), options.run)


def _pull(options: Options) -> None:
    from konvoi.verbs import runs

    out(str(runs.pull(_here(options), options.run, out=options.out, best=options.best)))


ACTS: dict[str, Callable[[Options], None]] = {
    "start": _start,
    "invite": _invite,
    "status": _status,
    "members": _members,
    "revoke": _revoke,
    "reform": _reform,
    "pack": _pack,
    "submit": _submit,
    "runs": _runs,
    "stop": _stop,
    "pull": _pull,
    **AT_SITE,
}

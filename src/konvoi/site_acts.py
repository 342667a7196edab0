"""`konvoi federation ACT`: the acts of people at a site."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from konvoi.errors import FleetError, KonvoiError
from konvoi.talk import line, lines, out

Options = argparse.Namespace


def is_site(options: Options) -> bool:
    from konvoi.verbs import site

    try:
        site.find(options.federation)
    except KonvoiError:
        return False
    return True


def _check(options: Options) -> None:
    from konvoi.observe.wording import columns
    from konvoi.security import pack as packs
    from konvoi.security.invitation import Invitation
    from konvoi.sites import checkup

    invitation = Invitation.load(options.invitation)
    pack = packs.read(options.pack)[0] if options.pack else None
    findings = [*checkup.check(invitation, Path(), options.data, pack)]
    out("\n".join(columns(checkup.as_rows(findings))))
    if wrong := [one.what for one in findings if not one.well]:
        raise KonvoiError("this site cannot take part yet", found=", ".join(wrong))


def _at_site(act: Callable[[Any, Options], None]) -> Callable[[Options], None]:
    """An act on this machine's membership."""

    def run(options: Options) -> None:
        from konvoi.verbs import site

        act(site.find(options.federation)[0], options)

    return run


def _review(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    lines(site.review(house, options.pack))


def _approve(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    pack = site.approve(house, options.pack)
    rounds = f"{house.rounds(pack):,} rounds of all its runs together"
    line(f"approved: {pack.name} {pack.hash}, {rounds}; `konvoi federation withdraw {pack.hash[:12]}` takes it back")


def _withdraw(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    line(f"no longer approved: {site.withdraw(house, options.pack).name}")


def _pause(house: Any, options: Options) -> None:
    house.pause()
    line("paused: nothing leaves; `konvoi federation resume` goes on")


def _resume(house: Any, options: Options) -> None:
    house.resume()


def _approve_member(options: Options) -> None:
    from konvoi.verbs import approving, site

    house, invitation = site.find(options.federation)
    if not options.member:
        lines(approving.waiting(house, invitation))
        return
    line(approving.approve(house, invitation, options.member, options.key, approver=options.approver))


def _remove_member(options: Options) -> None:
    from konvoi.verbs import approving, site

    line(approving.remove(*site.find(options.federation), options.member))


def _leave(options: Options) -> None:
    from konvoi.verbs import member, site

    if is_site(options):
        site.leave(*site.find(options.federation))
        line("left: nothing leaves any more")
        return
    if options.federation is None:
        raise FleetError("which federation?", hint="konvoi federation leave NAME")
    member.leave(options.federation)


def _limits(house: Any, options: Options) -> None:
    from konvoi.observe.wording import columns
    from konvoi.security.members import who_adds

    out("\n".join(columns(house.limits.as_rows(who_adds(house.members())))))
    line(f"they stand in {house.folder / 'limits.toml'}, and are read before every round")


def _outbox(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    kinds = () if options.all else ("update", "error")
    lines(site.outbox(house, kinds=kinds, as_json=options.json))


def _held(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    lines(site.held(house))


def _release(house: Any, options: Options) -> None:
    from konvoi.verbs import site

    site.release(house, options.update)


def _dossier(options: Options) -> None:
    from konvoi.sites.dossier import page
    from konvoi.verbs import site

    house, invitation = site.find(options.federation)
    path: Path = options.out or Path(f"{invitation.name}-dossier.html")
    path.write_text(page(house, invitation.name, invitation.federation, invitation.desks), encoding="utf-8")
    out(str(path))


AT_SITE: dict[str, Callable[[Options], None]] = {
    "check": _check,
    "review": _at_site(_review),
    "approve": _at_site(_approve),
    "withdraw": _at_site(_withdraw),
    "pause": _at_site(_pause),
    "resume": _at_site(_resume),
    "limits": _at_site(_limits),
    "outbox": _at_site(_outbox),
    "held": _at_site(_held),
    "release": _at_site(_release),
    "dossier": _dossier,
    "approve-member": _approve_member,
    "remove-member": _remove_member,
    "leave": _leave,
}

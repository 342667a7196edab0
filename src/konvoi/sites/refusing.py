"""What a site does not do, whatever the server asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from konvoi.security.identity import mark, own_key
from konvoi.security.pack import Pack
from konvoi.sites.house import House
from konvoi.sites.protocol import Facts, Started, convoy_of, is_listed_as_said, outside
from konvoi.state.journal import write


def forbidden(facts: Facts, run: Started, pack: Pack, signer: str, house: House, site: str) -> list[str]:
    """What the server asks for that goes beyond the pack, this site's limits, or what it has said before, in words."""
    if facts.run.hash != run.hash:
        return ["the server has changed the run"]
    plan, limits = convoy_of(pack.plan, run.settings), house.limits
    found = outside(run.settings, pack.ranges)
    assert plan.local is not None
    found += limits.forbid(plan.local, facts.rounds, signer)
    if not is_listed_as_said(pack.leaves):
        found.append("another version of konvoi made the pack: it does not list what this one says")
    if pack.hash not in house.approved():
        found.append("it is not approved here any more")
    if facts.rounds != plan.rounds or facts.round > plan.rounds + (not facts.wanted):
        found.append(f"round {facts.round} of {facts.rounds}; the pack has {plan.rounds}")
    members, own = house.members().sites, own_key(house.folder)
    if site not in members:
        found.append("this site is not on the roster that it holds: it has to be approved first")
    elif own and members[site].key != own:  # approved by those who have not heard its key
        found.append(f"the roster has another's key as {site}'s: {mark(members[site].key)} is not {mark(own)}")
    # Where nobody waits, an update is added up with others of the same few members.
    asked = min(plan.at_once, len(members)) if plan.at_once else len({*facts.cohort} & members.keys())
    if facts.wanted and asked < limits.min_cohort:
        found.append(f"a round of {asked} members; this site allows {limits.min_cohort} or more")
    return found + _gone_back(facts, house.run_folder(run.hash) / "known.json")


def _gone_back(facts: Facts, path: Path) -> list[str]:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"round": 0, "base": ""}
    if facts.round < known["round"]:
        return [f"the server has gone back: round {facts.round}, after {known['round']}"]
    if facts.round == known["round"] and facts.base != known["base"]:
        return [f"the server shows other weights for round {facts.round} than before"]
    if facts.round > known["round"]:
        write(path, json.dumps({"round": facts.round, "base": facts.base}).encode())
    return []

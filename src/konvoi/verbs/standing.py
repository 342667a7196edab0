"""How a federation stands, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from konvoi.observe.wording import columns
from konvoi.units import visible


def as_table(told: Mapping[str, Any], now: float) -> str:
    """Of `status`, for a person: who is slow, and why."""
    if "hall" in told:
        return _table_of_sites(told, now)
    rows = [("member", "seen", "round", "step", "samples/s", "waits", "reaches", "what")]
    for name, one in told["members"].items():
        one = {**one, **({"seen_s": one["seen_s"] + now - told["at"]} if "seen_s" in one else {})}
        seen = f"{one['seen_s']:.0f} s" if "seen_s" in one else "never"
        waits = f"{100 * one['waits']:.0f} %" if "waits" in one else ""
        figures = (one.get(key, "") for key in ("round", "step", "samples_per_s"))
        rows.append((name, seen, *map(str, figures), waits, ", ".join(one.get("reaches", ())), _what(one)))
    empty = ("",) * 6
    rows += [(name, *empty, f"invited, {one['expires_in_h']} h left") for name, one in told["invited"].items()]
    rows += [(name, *empty, "revoked") for name in told["revoked"]]
    head = f"{told['federation']}: " + (
        f"training began with {', '.join(told['begun'])}"
        if told["begun"]
        else f"waiting for {told['num_first']} members to begin"
    )
    rows += [("", *empty, f"reformed: went on as {name} had it") for name in told.get("reforms", ())]
    refused = [f"refused {count} times: {why}" for why, count in told["refused"].items()]
    return "\n".join(map(visible, [head, *columns(rows), *refused]))


def _table_of_sites(told: Mapping[str, Any], now: float) -> str:
    """What each does in each run."""
    rows = [("site", "seen", "run", "round", "what")]
    seen, runs = told["hall"]["sites"], told["hall"]["runs"]
    for name, one in told["members"].items():
        if one.get("pending"):
            continue
        at = f"{seen[name]['seen_s'] + now - told['at']:.0f} s" if name in seen else "never"
        its = [(run["run"], f"{run['round']} of {run['rounds']}", run["sites"].get(name, "not there")) for run in runs]
        what = [(run, of, "has left" if one.get("left") else text) for run, of, text in its] or [("", "", "")]
        rows += [(name if number == 0 else "", at if number == 0 else "", *row) for number, row in enumerate(what)]
    rows += [(name, "", "", "", one["pending"]) for name, one in told["members"].items() if one.get("pending")]
    rows += [(name, "", "", "", f"invited, {one['expires_in_h']} h left") for name, one in told["invited"].items()]
    rows += [(name, "", "", "", "revoked") for name in told["revoked"]]
    states = [f"{run['run']} {run['state']}" for run in runs] or ["no runs yet"]
    refused = [f"refused {count} times: {why}" for why, count in told["refused"].items()]
    signed = [f"roster: {told['roster']}"] if told.get("roster") else []
    return "\n".join(map(visible, [f"{told['federation']}: {', '.join(states)}", *columns(rows), *signed, *refused]))


def _what(one: Mapping[str, Any]) -> str:
    if one.get("left"):
        return "has left"
    if "seen_s" not in one:
        return "has its certificate, and was not here since the desk began"
    if one["seen_s"] > 15:
        return "silent"
    if one.get("done"):
        return "done"
    if "stands" not in one:
        return "waits for the beginning"
    if not one["stands"]:
        return "fetches the agreed state"
    return "waits for others" if one.get("waits", 0) > 0.5 else "trains"

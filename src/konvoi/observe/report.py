"""`report.html`: one self-contained page about a run, made from what lies in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from konvoi.observe import sections
from konvoi.observe.account import Account, account
from konvoi.observe.sections import Section, text
from konvoi.observe.sinks.jsonl import read_events
from konvoi.observe.wording import phrase


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, whatever the run has come to so far."""
    folder = Path(run_folder)
    path = folder / "report.html"
    draft = path.with_suffix(".html.part")
    draft.write_text(page(folder), encoding="utf-8")
    os.replace(draft, path)
    return path


def page(folder: Path) -> str:
    """The whole page; plan.json, job.json and events.jsonl may each be missing."""
    run = account(read_events(folder))
    started = run.started
    plan = _read(folder / "plan.json") or dict(started.plan if started else {})
    job = _read(folder / "job.json") or dict(started.job if started else {})
    unit = str(job.get("unit", "samples"))
    parts: list[Callable[[], Section | None]] = [
        lambda: sections.loss(run),
        lambda: sections.speed(run, unit),
        lambda: sections.agreements(run),
        lambda: sections.time_spent(run),
        lambda: sections.samples(run),
        lambda: sections.incidents(run),
        lambda: sections.clients(run),
        lambda: sections.evaluations(run),
        lambda: sections.setting(job, plan, run),
    ]
    made = [section for part in parts if (section := part()) is not None]
    body = (
        _masthead(folder, job, run)
        + sections.lead(run, unit)
        + sections.headline(run, unit)
        + "".join(map(_section, made))
    )
    return page_of(folder.resolve().name, body)


def read_unit(folder: Path) -> str:
    """What the run counts."""
    return str(_read(folder / "job.json").get("unit", "samples"))


def _section(section: Section) -> str:
    return f"<section><h2>{text(section.title)}</h2>{section.body}</section>"


def _masthead(folder: Path, job: Mapping[str, Any], run: Account) -> str:
    state, word = _state(run)
    began = datetime.fromtimestamp(run.began).strftime("%-d %B %Y, %H:%M") if run.began else "not started"
    fleet = run.started.fleet if run.started else ""
    facts = " · ".join(text(fact) for fact in (began, fleet) if fact)
    summary = text(phrase({name: value for name, value in job.items() if name in ("model", "data", "objective")}))
    return (
        f'<header><p class="kicker">Konvoi run <span class="state {state}">{text(word)}</span></p>'
        f"<h1>{text(folder.resolve().name)}</h1><p class=facts>{facts}</p>"
        + (f"<p class=summary>{summary}</p>" if summary else "")
        + "</header>"
    )


def _state(run: Account) -> tuple[str, str]:
    """A CSS class and a word."""
    if run.ended is None:
        return "open", "no end recorded"
    return ("bad" if run.ended.reason == "failed" else "good"), run.ended.reason


def page_of(title: str, body: str) -> str:
    """A self-contained page."""
    style = files("konvoi.observe").joinpath("report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)} · Konvoi</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{style}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _read(path: Path) -> dict[str, Any]:
    """A missing or half-written record leaves its section to what the events say."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}

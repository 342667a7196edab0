"""Several runs on one page, side by side: their figures, their losses over time at one scale, and what befell them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from konvoi.observe import sections
from konvoi.observe.account import Account, account
from konvoi.observe.report import page_of, read_unit
from konvoi.observe.sections import text
from konvoi.observe.sinks.jsonl import read_events


def write(path: str | Path, title: str, folders: Sequence[str | Path]) -> Path:
    """Write the page, whole or not at all. The runs' own reports are linked."""
    path = Path(path)
    columns = [_column(Path(folder), path.parent) for folder in folders]
    body = (
        f'<header><p class="kicker">Konvoi, {len(columns)} runs</p><h1>{text(title)}</h1></header>'
        f'<div class="beside">{"".join(columns)}</div>'
    )
    draft = path.with_suffix(".html.part")
    draft.write_text(page_of(title, body), encoding="utf-8")
    os.replace(draft, path)
    return path


def _column(folder: Path, beside: Path) -> str:
    run = account(read_events(folder))
    islands = sorted((folder / "islands").glob("*")) if (folder / "islands").exists() else []
    others = "".join(_island(path.name, account(read_events(path))) for path in islands)
    parts = [sections.loss(run), sections.speed(run, read_unit(folder))]
    parts += [sections.agreements(run), sections.incidents(run)]
    made = "".join(f"<section><h2>{text(part.title)}</h2>{part.body}</section>" for part in parts if part is not None)
    link = os.path.relpath(folder / "report.html", beside)
    return (
        f'<article><h2><a href="{text(link)}">{text(folder.name)}</a></h2>'
        f"{sections.headline(run, read_unit(folder))}{made}{others}</article>"
    )


def _island(name: str, run: Account) -> str:
    part = sections.incidents(run)
    return f"<section><h2>{text(name)}</h2>{part.body}</section>" if part is not None else ""

"""report: one page about a run."""

from __future__ import annotations

from pathlib import Path

from konvoi.errors import StateError
from konvoi.observe.report import write_report


def report(run: str | Path) -> Path:
    """Write a run's `report.html` anew, self-contained, and return its path. Raises: StateError for no run."""
    if not (Path(run) / "events.jsonl").is_file():
        raise StateError("this is no run of Konvoi", found=run, expected="a folder with events.jsonl")
    return write_report(Path(run))

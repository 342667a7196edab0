"""Write docs/support.md from docs/support.toml: `python docs/make_support.py`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
TABLE, PAGE = DOCS / "support.toml", DOCS / "support.md"

HEAD = """\
<!-- Made by docs/make_support.py from docs/support.toml: edit that, then `make docs`. -->
# What is tested where

- **tested in CI**: on every change, by the linked test.
- **tested on** a device: by hand, on the day and at the commit named.
- *not tested by us*: nobody here has run it. `konvoi doctor --self-test` runs the equivalence table on your own
  devices.
- –: has no meaning there.
"""


def page(table: Mapping[str, Any]) -> str:
    """Raises: ValueError for a cell that says what cannot be checked."""
    columns: Mapping[str, str] = table["columns"]
    lines = [HEAD]
    for group in table["groups"]:
        lines.append(_row([group["title"], *columns.values()]))
        lines.append(_row(["---"] * (len(columns) + 1)))
        for feature in group["features"]:
            unknown = feature.keys() - columns.keys() - {"name"}
            if unknown:
                raise ValueError(f"{feature['name']}: no such column: {sorted(unknown)}; known: {list(columns)}")
            lines.append(_row([feature["name"], *(_cell(feature.get(column)) for column in columns)]))
        lines.append("")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: str | Mapping[str, str] | None) -> str:
    match value:
        case None:
            return "*not tested by us*"
        case "-":
            return "–"
        case str():
            if not (DOCS.parent / value).is_file():
                raise ValueError(f"no such test: {value}")
            return f"[**tested in CI**](../{value})"
        case {"device": device, "date": date, "commit": commit, **rest} if not rest:
            return f"**tested on** {device}, {date}, {commit}"
        case _:
            raise ValueError(f"found {value!r}; expected a test's path, device, date and commit, or '-'")


if __name__ == "__main__":
    PAGE.write_text(page(tomllib.loads(TABLE.read_text())))

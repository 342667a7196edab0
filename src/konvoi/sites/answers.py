"""What the server says, looked at before anything is done with it: its hashes become names of files at a site."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from konvoi.errors import MessageRefused
from konvoi.sites.protocol import STATES, Facts, Started

LONGEST = 200  # characters of a name
MOST = 1 << 53  # what is counted: above, not every number has a double of its own


def object_of(data: bytes) -> dict[str, Any]:
    """Raises: MessageRefused."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MessageRefused("an answer of the server makes no sense", found=repr(data[:60]))
    return found


def started_of(found: Any) -> Started:
    """Raises: MessageRefused."""
    return Started(**_sound(found, STARTED))


def facts_of(found: Any) -> Facts:
    """Raises: MessageRefused."""
    values = _sound(found, FACTS)
    return Facts(**{**values, "run": started_of(values["run"]), "cohort": tuple(values["cohort"])})


def is_hash(value: Any) -> bool:
    """
    >>> is_hash("../limits.toml"), is_hash("ab" * 32)
    (False, True)
    """
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _are_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(type(one) in (int, float) and abs(one) < MOST for one in value.values())


STARTED: Mapping[str, Callable[[Any], bool]] = {
    "federation": _is_text,
    "id": _is_text,
    "pack": is_hash,
    "settings": _are_settings,
    "first": _is_count,
    "least": _is_count,
}
FACTS: Mapping[str, Callable[[Any], bool]] = {
    "run": lambda value: isinstance(value, dict),
    "state": lambda value: value in STATES,
    "round": _is_count,
    "rounds": _is_count,
    "base": is_hash,
    "size": _is_count,
    "cohort": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "wanted": lambda value: isinstance(value, bool),
    "counted": lambda value: value == "" or is_hash(value),
    "refused": lambda value: isinstance(value, str),
    "roster": _is_count,
}


def _sound(found: Any, kinds: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """The fields that are known."""
    values = {name: found.get(name) for name in kinds} if isinstance(found, dict) else dict.fromkeys(kinds)
    for name, is_sound in kinds.items():
        if not is_sound(values[name]):
            raise MessageRefused("an answer of the server makes no sense", found=f"{name}: {str(values[name])[:60]!r}")
    return values

"""What a version of a roster says, and who has signed it. It comes from others: nothing in it is believed before it was
looked at."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from konvoi.errors import StateError

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")  # as of a host: it stands in a certificate
ROLES = (MEMBER, APPROVER, KEEPER) = ("member", "approver", "keeper")  # the last approves, and has no data
LONGEST = 200  # characters of an organisation
LATEST = 1e11  # seconds since the epoch
FIELDS = ("federation", "number", "before", "needed", "add", "remove")


@dataclass(frozen=True)
class Entry:
    """`key`: public, as hex; `since`: when it came to the server, in seconds since the epoch."""

    name: str
    organisation: str
    key: str
    role: str
    since: float


@dataclass(frozen=True)
class Version:
    """What was signed, as it was signed, and by whom: signatures by name, hex."""

    text: str
    signatures: Mapping[str, str]

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def line(self) -> str:
        return json.dumps({"text": self.text, "signatures": dict(self.signatures)})

    @classmethod
    def read(cls, told: Any) -> Version:
        """Of a line, or of what one has in it. Raises: StateError."""
        try:
            told = json.loads(told) if isinstance(told, (str, bytes)) else told
            text, signatures = told["text"], told["signatures"]
            if (
                not isinstance(text, str)
                or not text.isascii()
                or not all(isinstance(one, str) for one in signatures.values())
            ):
                raise TypeError
            return cls(text, dict(signatures))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise StateError("this is no version of a roster", found=repr(told)[:60]) from None


def read(text: str) -> dict[str, Any]:
    """Raises: StateError for what is no version."""
    try:
        found = json.loads(text)
        if tuple(found) != FIELDS:
            raise ValueError("other fields")
        kinds = {"federation": str, "number": int, "before": str, "needed": int, "add": list, "remove": list}
        if wrong := [name for name, kind in kinds.items() if type(found[name]) is not kind]:
            raise ValueError(wrong[0])
        if not all(isinstance(name, str) and NAME.fullmatch(name) for name in found["remove"]):
            raise ValueError("remove")
        add = tuple(map(_entry, found["add"]))
        if text != as_text({**found, "add": [asdict(one) for one in add]}):  # a name that stands there twice, perhaps
            raise ValueError("what it says is written in another way")
        return {**found, "add": add}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StateError("this is no version of a roster", found=str(error)[:60]) from None


def as_text(told: Mapping[str, Any]) -> str:
    """The one way in which it is written, whoever makes it: so that signatures are of one text."""
    return json.dumps({name: told[name] for name in FIELDS})


def _entry(told: Any) -> Entry:
    """Raises: ValueError, TypeError."""
    one = Entry(**told)
    is_said = isinstance(one.organisation, str) and one.organisation.isprintable() and len(one.organisation) <= LONGEST
    if not NAME.fullmatch(one.name) or not is_said or one.role not in ROLES:
        raise ValueError(repr(told)[:60])
    is_time = type(one.since) in (int, float) and 0 <= one.since < LATEST
    if not is_time or not re.fullmatch("0[23][0-9a-f]{64}", one.key):  # a point has one such form, and so a key has
        raise ValueError(f"the key of {one.name}, or since when")
    return one


def entry_of(told: Any) -> Entry:
    """As a server shows it. Raises: StateError."""
    try:
        return _entry(told)
    except (ValueError, TypeError) as error:
        raise StateError("this is no entry of a roster", found=str(error)[:60]) from None


def about(text: str) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Who comes by a version, and the names of who goes. Raises: StateError."""
    found = read(text)
    return found["add"], found["remove"]

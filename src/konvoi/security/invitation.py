"""What a new member is given, in a file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from konvoi.errors import FleetError
from konvoi.security.version import NAME


@dataclass(frozen=True)
class Invitation:
    """What a new member is given, in a file: where to go, whom to trust there, and the proof that it may come."""

    federation: str
    federation_id: str
    name: str  # the member's
    desks: tuple[str, ...]  # host:port, tried in this order
    authority: str  # PEM
    token: str
    expires: float
    recipe: str  # the file's name
    overrides: tuple[str, ...]  # of its job's fields
    plan: str  # as the command line has it
    terms: str  # hash of recipe, overrides, plan and version: what both sides must have alike
    organisation: str = ""
    founding: str = ""  # of sites: the first version of the roster, as founders have signed it; "": they are to sign it

    def write(self, path: Path) -> None:
        """For the owner's eyes alone. Raises: FleetError where there is such a file."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise FleetError("there is such a file already", found=path) from None
        with os.fdopen(descriptor, "w") as file:
            file.write(self.as_text())

    def as_text(self) -> str:
        return json.dumps(self.__dict__, indent=1)

    @classmethod
    def load(cls, path: str) -> Invitation:
        """ "-" is standard input. Raises: FleetError."""
        try:
            return cls.read(sys.stdin.read() if path == "-" else Path(path).read_text())
        except OSError as error:
            raise FleetError("the invitation cannot be read", found=f"{path}: {error.strerror}") from None

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Raises: FleetError for what is none."""
        try:
            found = json.loads(text)
            kinds = {"desks": list, "overrides": list, "expires": float}
            if {*found, "organisation", "founding"} != cls.__dataclass_fields__.keys():
                raise ValueError("other fields")
            for name, value in found.items():
                if not isinstance(value, kinds.get(name, str)):
                    raise TypeError(name)
            for name in (found["federation"], found["name"]):
                if not NAME.fullmatch(name):
                    raise ValueError(f"{name!r} is no name")
            if Path(found["recipe"]).name != found["recipe"]:
                raise ValueError(f"{found['recipe']!r} is no file's name")
            lists = {name: tuple(map(str, found[name])) for name in ("desks", "overrides")}
            return cls(**{**found, **lists})
        except (ValueError, TypeError, AttributeError) as error:
            raise FleetError("this is no invitation", found=str(error)) from None

"""What a site has consented to, and everything else that it keeps: a folder that its people and its agent share."""

from __future__ import annotations

import getpass
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from konvoi.errors import StateError
from konvoi.security import pack as packs
from konvoi.security.identity import is_vouched
from konvoi.security.outbox import Outbox
from konvoi.security.pack import Pack
from konvoi.sites.limits import TEXT, Limits
from konvoi.state.journal import append, lines, write


class House:
    """Of one membership. Commands and the agent are processes of their own; what they tell each other lies here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("packs", "held", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / "limits.toml").exists():
            write(folder / "limits.toml", TEXT.encode())

    @property
    def limits(self) -> Limits:
        """Raises: ConfigError."""
        return Limits.read(self.folder / "limits.toml")

    # -- packs ---------------------------------------------------------------------------------------------------------

    def take_in(self, path: Path) -> tuple[Pack, str]:
        """Keep a pack here, to be looked at; and who has signed it. Raises: StateError."""
        found, signer = packs.read(path)
        if not self.path_of(found.hash).exists():
            write(self.path_of(found.hash), path.read_bytes())
        return found, signer

    def path_of(self, pack: str) -> Path:
        return self.folder / "packs" / f"{pack}.pack"

    def pack(self, which: str) -> tuple[Pack, str]:
        """By its name, or the beginning of its hash; "" is the only one that is not approved. Raises: StateError."""
        known = [packs.read(path) for path in sorted((self.folder / "packs").glob("*.pack"), key=_age)]
        approved = self.approved()
        if which:
            found = [one for one in known if one[0].hash.startswith(which) or one[0].name == which]
        else:
            found = [one for one in known if one[0].hash not in approved]
        if not found:
            names = ", ".join(f"{one.name} {one.hash[:12]}" for one, _ in known) or "none"
            raise StateError(
                "there is no such pack here", found=which or "none that waits for approval", expected=names
            )
        return found[-1]

    def approved(self) -> dict[str, float]:
        """Hashes of packs that a person has agreed to, and has not taken that back; and when."""
        found: dict[str, float] = {}
        for entry in self.consents():
            if entry["what"] == "approved":
                found[entry["pack"]] = entry["at"]
            else:
                found.pop(entry["pack"], None)
        return found

    def consents(self) -> list[dict[str, Any]]:
        """Who agreed to what, and when; and who took it back."""
        return [json.loads(line) for line in lines(self.folder / "consents.jsonl")]

    def approve(self, pack: Pack, signer: str) -> None:
        """Raises: StateError where this site's limits forbid it."""
        from konvoi.sites.protocol import convoy_of

        plan = convoy_of(pack.plan, {})
        assert plan.local is not None
        if wrong := self.limits.forbid(plan.local, plan.rounds, signer):
            raise StateError(
                "this site's limits forbid that", found="; ".join(wrong), hint=f"{self.folder}/limits.toml"
            )
        self._consent("approved", pack.hash, pack.name)

    def withdraw(self, pack: Pack) -> None:
        self._consent("withdrawn", pack.hash, pack.name)

    def _consent(self, what: str, pack: str, name: str) -> None:
        entry = {"what": what, "pack": pack, "name": name, "at": time.time(), "by": getpass.getuser()}
        append(self.folder / "consents.jsonl", json.dumps(entry).encode())

    def last_approved(self, but: str = "") -> Pack | None:
        """What a new pack is compared with: the one before, whatever has become of it."""
        found = [one["pack"] for one in self.consents() if one["what"] == "approved" and one["pack"] != but]
        return packs.read(self.path_of(found[-1]))[0] if found else None

    # -- a person's word -----------------------------------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        return (self.folder / "paused").exists()

    def pause(self) -> None:
        write(self.folder / "paused", b"")

    def resume(self) -> None:
        (self.folder / "paused").unlink(missing_ok=True)

    @property
    def has_left(self) -> bool:
        return (self.folder / "left").exists()

    # -- what is known of the federation -------------------------------------------------------------------------------

    def roster(self) -> dict[str, Any]:
        path = self.folder / "roster.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"entries": 0, "members": {}}
        return found

    def take_roster(self, told: Mapping[str, Any], authority: bytes) -> None:
        """Raises: StateError for one that the authority has not signed, or that is older than the one held here."""
        text = str(told["text"])
        if not is_vouched(authority, str(told["signature"]), text.encode()):
            raise StateError("the server's roster is not signed by the federation's authority")
        found, held = json.loads(text), self.roster()
        if found["entries"] < held["entries"]:
            raise StateError(
                "the server's roster is older than the one held here: it has gone back",
                found=f"{found['entries']} entries",
                expected=f"{held['entries']} or more",
            )
        if found["entries"] == held["entries"] and held["members"] and found["members"] != held["members"]:
            raise StateError("the server shows another roster than before", found=", ".join(found["members"]))
        if found != held:
            write(self.folder / "roster.json", text.encode())

    def run_folder(self, run: str) -> Path:
        folder = self.folder / "runs" / run[:16]
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def outbox(self) -> Outbox:
        return Outbox(self.folder / "outbox.jsonl")

    # -- updates that wait ---------------------------------------------------------------------------------------------

    def held(self) -> list[Path]:
        return sorted((self.folder / "held").glob("*.frame"))

    def hold(self, data: bytes) -> Path:
        path = self.folder / "held" / f"{hashlib.sha256(data).hexdigest()[:16]}.frame"
        if not path.exists():
            write(path, data)
        return path


def release(path: Path) -> None:
    """A person lets it go."""
    write(path.with_suffix(".released"), b"")


def is_released(path: Path) -> bool:
    return path.with_suffix(".released").exists()


def let_go(path: Path) -> None:
    """It has been sent, or will not be any more."""
    path.unlink(missing_ok=True)
    path.with_suffix(".released").unlink(missing_ok=True)


def _age(path: Path) -> float:
    return path.stat().st_mtime

"""What a site has consented to, and everything else that it keeps: a folder that its people and its agent share."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from konvoi.errors import StateError
from konvoi.lines import alone
from konvoi.security import members as rosters
from konvoi.security import pack as packs
from konvoi.security.identity import mark
from konvoi.security.members import Members
from konvoi.security.outbox import Outbox
from konvoi.security.pack import Pack
from konvoi.security.version import Version
from konvoi.sites.limits import TEXT, Limits, with_hold
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

    def hold_updates(self, wanted: str) -> None:
        """See `limits.with_hold`. Raises: ConfigError."""
        path = self.folder / "limits.toml"
        write(path, with_hold(path.read_text(), wanted).encode())

    # -- packs ---------------------------------------------------------------------------------------------------------

    def take_in(self, path: Path) -> tuple[Pack, str]:
        """Keep a pack here, to be looked at; and who has signed it. Raises: StateError."""
        found, signer = packs.read(path)
        copy = self._copy(found.hash, signer)
        if not copy.exists():
            write(copy, path.read_bytes())
        return found, signer

    def path_of(self, pack: str) -> Path:
        """Of what others have signed again there are several copies here: the one that was agreed to, else any.

        Raises: StateError for what is no hash.
        """
        if not re.fullmatch("[0-9a-f]{64}", pack):  # a server may have told it
            raise StateError("this is no hash of a pack", found=repr(pack[:64]))
        agreed = self._copy(pack, self._agreed().get(pack, {}).get("signer", ""))
        if agreed.exists():
            return agreed
        return next(iter(sorted((self.folder / "packs").glob(f"{pack}.*.pack"))), agreed)

    def signers(self, pack: str) -> list[str]:
        """Of all copies that are here."""
        return sorted(path.stem.partition(".")[2] for path in (self.folder / "packs").glob(f"{pack}.*.pack"))

    def _copy(self, pack: str, signer: str) -> Path:
        return self.folder / "packs" / f"{pack}.{signer}.pack"

    def pack(self, which: str, *, approved: bool = False) -> tuple[Pack, str]:
        """The one of this name, or whose hash begins so; "": the only one that waits for approval. A pack's name is
        its maker's choice, so what may be a hash is never taken for one. HASH.SIGNER is one copy of several.

        Raises: StateError where none or several are meant.
        """
        agreed = self._agreed()
        paths = sorted((self.folder / "packs").glob("*.pack"), key=_age)
        known = [(path, *one) for path in paths if (one := packs.read(path))[0].hash in agreed or not approved]
        found = [one for one in known if _is_meant(which, one[1], one[0]) and (which or one[1].hash not in agreed)]
        if len(found) > 1 and len({pack.hash for _, pack, _ in found}) == 1 and found[0][1].hash in agreed:
            found = [one for one in found if one[0] == self.path_of(one[1].hash)]
        if len(found) == 1:
            return found[0][1:]
        names = "; ".join(f"{one.name} {path.stem}" for path, one, _ in found or known) or "none"
        if not found:
            raise StateError(
                "there is no such pack here", found=which or "none that waits for approval", expected=names
            )
        hint = "HASH, or HASH.SIGNER where one was signed by several"
        raise StateError("which pack?", found=which or "several that wait for approval", expected=names, hint=hint)

    def approved(self) -> dict[str, float]:
        """Hashes of packs that a person has agreed to, and has not taken that back; and when."""
        return {pack: entry["at"] for pack, entry in self._agreed().items()}

    def _agreed(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for entry in self.consents():
            found.pop(entry["pack"], None)
            if entry["what"] == "approved":
                found[entry["pack"]] = entry
        return found

    def consents(self) -> list[dict[str, Any]]:
        """Who agreed to what, and when; and who took it back."""
        return [json.loads(line) for line in lines(self.folder / "consents.jsonl")]

    def approve(self, pack: Pack, signer: str) -> None:
        """Raises: StateError where this site's limits forbid it."""
        from konvoi.sites.protocol import convoy_of, is_listed_as_said

        plan = convoy_of(pack.plan, {})
        assert plan.local is not None
        if not is_listed_as_said(pack.leaves):
            raise StateError("another version of konvoi made this pack: it does not list what this one says")
        if wrong := self.limits.forbid(plan.local, plan.rounds, signer):
            raise StateError(
                "this site's limits forbid that", found="; ".join(wrong), hint=f"{self.folder}/limits.toml"
            )
        times = self._times(pack)
        is_used_up = pack.hash in self.approved() and self._joined_rounds(pack) + self._rounds(pack) > self.rounds(pack)
        self._consent("approved", pack, signer, times=times + 1 if not times or is_used_up else times)

    def withdraw(self, pack: Pack) -> None:
        self._consent("withdrawn", pack, self._agreed().get(pack.hash, {}).get("signer", ""))

    def _consent(self, what: str, pack: Pack, signer: str, **more: Any) -> None:
        told = {"what": what, "pack": pack.hash, "signer": signer, "name": pack.name}
        entry = {**told, "at": time.time(), "by": getpass.getuser(), **more}
        append(self.folder / "consents.jsonl", json.dumps(entry).encode())

    def waiting(self) -> set[str]:
        """Hashes of packs to which nobody here has said anything yet."""
        here = {path.name.partition(".")[0] for path in (self.folder / "packs").glob("*.pack")}
        return here - {entry["pack"] for entry in self.consents()}

    def last_approved(self, but: str = "") -> Pack | None:
        """What a new pack is compared with: the one before, whatever has become of it."""
        found = [one["pack"] for one in self.consents() if one["what"] == "approved" and one["pack"] != but]
        return packs.read(self.path_of(found[-1]))[0] if found else None

    # -- how far an agreement goes -------------------------------------------------------------------------------------

    def rounds(self, pack: Pack) -> int:
        """That were agreed to, of all runs of this pack together."""
        return self._times(pack) * self._rounds(pack)

    def joined(self, pack: Pack) -> list[dict[str, Any]]:
        """The runs of this pack that this site takes part in, or did, each with its rounds."""
        found = [json.loads(line) for line in lines(self.folder / "joined.jsonl")]
        return [entry for entry in found if entry["pack"] == pack.hash]

    def join(self, pack: Pack, run: str, id: str, rounds: int) -> bool:
        """Whether all rounds of a run, by its hash, are within what was agreed to; from then on they are its own."""
        if any(entry["run"] == run for entry in self.joined(pack)):
            return True
        if self._joined_rounds(pack) + rounds > self.rounds(pack):
            return False
        entry = {"pack": pack.hash, "run": run, "id": id, "rounds": rounds, "at": time.time()}
        append(self.folder / "joined.jsonl", json.dumps(entry).encode())
        return True

    def _joined_rounds(self, pack: Pack) -> int:
        return sum(entry["rounds"] for entry in self.joined(pack))

    def _rounds(self, pack: Pack) -> int:
        """Of one approval: the longest run that the pack allows, unless this site has a limit of its own."""
        _, high = pack.ranges.get("rounds", (0, 0))
        return self.limits.max_rounds_per_pack or max(int(high), pack.plan.get("rounds", 0))

    def _times(self, pack: Pack) -> int:
        found = [
            one.get("times", 1) for one in self.consents() if one["pack"] == pack.hash and one["what"] == "approved"
        ]
        return max(found, default=0)

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

    def versions(self) -> list[Version]:
        """Of the roster, as this site holds it. Raises: StateError."""
        return [Version.read(line) for line in lines(self.folder / "roster.jsonl")]

    def members(self) -> Members:
        """Raises: StateError."""
        return rosters.follow(self.versions())

    def take_roster(self, told: Any, founding: str, since: int | None = None) -> Members:
        """`founding`: hash of the version that this site knows to be the founders'; "": it is a founder, and holds to
        what its people have signed. `since`: versions held when this was asked for; more may have come while the answer
        was on its way. Raises: StateError for a roster that it does not take."""
        with alone(self.folder / "roster.lock"):  # the agent, and a command of those who approve
            held = self.versions()
            try:
                shown = [Version.read(one) for one in told] if isinstance(told, list) else []
                if not shown:
                    raise StateError("it has no version that founders have signed")
                found = rosters.extend(held if since is None else held[: max(since, len(shown))], shown)
                if found.founding != (known := founding or self.founded()):
                    wanted = mark(known) if known else "what is signed here first"
                    raise StateError("it is another federation's", found=mark(found.founding), expected=wanted)
            except StateError as error:
                why = "the server shows a roster that this site does not take"
                raise StateError(f"{why}: {error.message}", found=error.found, expected=error.expected) from None
            if len(shown) > len(held):  # of what is held the signatures stay, too: those shown were not looked at
                kept = [*held, *shown[len(held) :]]
                write(self.folder / "roster.jsonl", "".join(f"{one.line()}\n" for one in kept).encode())
            return found if len(shown) >= len(held) else self.members()

    def founded(self) -> str:
        """Hash of what a founder's people have signed; "": nothing."""
        path = self.folder / "founding"
        return path.read_text() if path.exists() else ""

    def note_founding(self, text: str) -> None:
        """Before it is signed. Raises: StateError where another was: a server could show each to others."""
        hash = Version(text, {}).hash
        if self.founded() not in ("", hash):
            raise StateError("other founders were signed for here", found=mark(hash), expected=mark(self.founded()))
        write(self.folder / "founding", hash.encode())

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

    def has_let_go(self, run: str) -> bool:
        """Whether an update of this run was let go. `run`: its hash."""
        return (self.run_folder(run) / "let-go").exists()

    def note_let_go(self, run: str) -> None:
        write(self.run_folder(run) / "let-go", b"")

    # -- what went wrong -----------------------------------------------------------------------------------------------

    def log(self, text: str, run: str = "") -> None:
        """For people here, and nobody else."""
        folder = self.run_folder(run) if run else self.folder
        with contextlib.suppress(OSError), (folder / "log.txt").open("a") as file:  # a full disk, perhaps
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")


def release(path: Path) -> None:
    """A person lets it go."""
    write(path.with_suffix(".released"), b"")


def is_released(path: Path) -> bool:
    return path.with_suffix(".released").exists()


def let_go(path: Path) -> None:
    """It has been sent, or will not be any more."""
    path.unlink(missing_ok=True)
    path.with_suffix(".released").unlink(missing_ok=True)


def _is_meant(which: str, pack: Pack, copy: Path) -> bool:
    if re.fullmatch(r"[0-9a-f]+(\.[0-9a-f]*)?", which):
        return copy.stem.startswith(which)
    return not which or pack.name == which


def _age(path: Path) -> float:
    return path.stat().st_mtime

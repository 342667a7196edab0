"""What a site allows, whatever the server says: a file of its own, read again before every round."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from konvoi.errors import ConfigError, did_you_mean
from konvoi.plan.local import Local

HOLDS = ("no", "first", "each")
DAY_S = 86_400.0


@dataclass(frozen=True)
class Limits:
    """See `TEXT` for what each means."""

    min_cohort: int = 2
    max_rounds: int = 1000
    max_rounds_per_pack: int = 0
    max_epochs: float = 20.0
    max_steps: int = 10_000
    max_minutes_per_round: float = 120.0
    max_bytes_per_day: int = 10_000_000_000
    signers: tuple[str, ...] = ()
    hold: str = "no"
    hold_command: str = ""

    def __post_init__(self) -> None:
        """Raises: ConfigError."""
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), getattr(type(self), field.name)
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            is_number = isinstance(default, (int, float))
            if not isinstance(value, kinds) or isinstance(value, bool) or (is_number and not value >= 0):
                raise ConfigError(f"{field.name} is not as it should be", found=repr(value), expected=f"like {default}")
        if self.hold not in HOLDS:
            raise ConfigError(
                "nothing, the first update of each run, or each is held",
                found=repr(self.hold),
                expected=", ".join(HOLDS),
            )

    @classmethod
    def read(cls, path: Path) -> Limits:
        """Raises: ConfigError for a file with anything that is not known; a limit that is misspelt would be none."""
        try:
            found = tomllib.loads(path.read_text())
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise ConfigError("the limits cannot be read", found=f"{path}: {error}") from None
        known = [field.name for field in dataclasses.fields(cls)]
        for name in found:
            if name not in known:
                raise ConfigError("there is no such limit", found=f"{path}: {name}", hint=did_you_mean(name, known))
        if isinstance(found.get("signers"), list):
            found["signers"] = tuple(map(str, found["signers"]))
        return cls(**found)

    def forbid(self, local: Local, rounds: int, signer: str) -> list[str]:
        """What of a run goes beyond them, in words."""
        found = []
        if local.steps > self.max_steps:
            found.append(f"{local.steps} steps a round; this site allows {self.max_steps}")
        if not local.steps and local.epochs > self.max_epochs:
            found.append(f"{local.epochs:g} epochs a round; this site allows {self.max_epochs:g}")
        if local.finetune > self.max_epochs:
            found.append(f"{local.finetune:g} epochs of fine-tuning; this site allows {self.max_epochs:g}")
        if rounds > self.max_rounds:
            found.append(f"{rounds} rounds; this site allows {self.max_rounds}")
        if self.signers and signer not in self.signers:
            found.append(f"signed by {signer[:16]}, who is not among this site's signers")
        return found

    def as_rows(self, who_adds: str) -> list[Sequence[str]]:
        """Which hold because this site sees to them, and of which another's word has to be taken. `who_adds`: members
        to the roster, as `members.who_adds` has it."""
        return [
            ("limit", "value", "seen to"),
            ("epochs of a round", f"{self.max_epochs:g}", "here"),
            ("steps of a round", f"{self.max_steps:,}", "here"),
            ("rounds of a run", f"{self.max_rounds:,}", "here"),
            (
                "rounds of all runs of a pack, for an approval",
                f"{self.max_rounds_per_pack:,}" if self.max_rounds_per_pack else "as the pack says",
                "here",
            ),
            ("minutes of a round", f"{self.max_minutes_per_round:g}", "here"),
            ("bytes that leave in a day", f"{self.max_bytes_per_day:,}", "here"),
            ("who may sign a pack", ", ".join(one[:16] for one in self.signers) or "anybody who is approved", "here"),
            ("updates that are held", self.hold + (f", for {self.hold_command}" if self.hold_command else ""), "here"),
            (
                "sites of a round, at least",
                str(self.min_cohort),
                "here: that so many are on the roster that this site holds, whose signatures it checks",
            ),
            ("", "", f"signed for by others: who they are; {who_adds}"),
            ("", "", "told by the server: that they have all sent an update"),
            ("what happens to updates", "", "told by the server: that it adds them up and keeps none"),
        ]


def with_hold(text: str, wanted: str) -> str:
    """The file's text, holding what is said: one of `HOLDS`, or a command that looks at each update; all else in it
    stays. Raises: ConfigError."""
    hold, command = (wanted, "") if wanted in HOLDS else ("each", wanted)
    if wanted not in HOLDS and shutil.which((wanted.split() or [""])[0]) is None:
        expected = f"{', '.join(HOLDS)}, or a program that is here"
        raise ConfigError(
            "nothing can be held like that", found=repr(wanted), expected=expected, hint=did_you_mean(wanted, HOLDS)
        )
    text = _with(_with(text, "hold", hold), "hold_command", command)
    try:
        found = tomllib.loads(text)
        is_so = (found.get("hold"), found.get("hold_command")) == (hold, command)
    except ValueError:
        is_so = False
    if not is_so:
        raise ConfigError("the limits cannot be changed", found=wanted, hint="write hold into limits.toml")
    return text


def _with(text: str, name: str, value: str) -> str:
    line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
    text, count = re.subn(rf"^{name}\s*=.*$", lambda _: line, text, flags=re.MULTILINE)
    return text if count else f"{text.rstrip()}\n{line}\n"


TEXT = f"""\
# What this site allows, whatever the server says. Read again before every round.

# Members that a round has to ask, this site among them, counted on the roster that this site holds: no version of it is
# taken that its founders, and those who approve newcomers, have not signed. `konvoi federation members` shows who they
# are. Where it is whoever keeps the server, alone, that person can add members.
min_cohort = {Limits.min_cohort}

# Of a run, and of a round.
max_rounds = {Limits.max_rounds}
max_epochs = {Limits.max_epochs}
max_steps = {Limits.max_steps}
max_minutes_per_round = {Limits.max_minutes_per_round}

# Of all runs of a pack together, for one approval; 0: as many as the longest run that the pack allows.
max_rounds_per_pack = {Limits.max_rounds_per_pack}

# That leave, of all runs together.
max_bytes_per_day = {Limits.max_bytes_per_day}

# Public keys of those whose packs may be approved here; [] is anybody's.
signers = []

# "first" or "each": updates wait for `konvoi federation release`, or for a command that is given the update's file and
# ends with status 0.
hold = "no"
hold_command = ""
"""

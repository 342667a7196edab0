"""What sites and their server say to each other. What a site says is frames of a list, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import StateError
from konvoi.plan.convoy import Convoy
from konvoi.plan.local import Local
from konvoi.security.leaving import Field, Frame, Listed

HASH = 32  # bytes of one
NOTHING = bytes(HASH)
PIECE = 4 << 20  # bytes that are fetched at once

# What a site does, in its word that it is here.
WAITS_FOR_APPROVAL, IS_READY, TRAINS, IS_PAUSED, REFUSES, HOLDS = range(6)
DOING = ("waits for approval", "is ready", "trains", "is paused", "refuses", "waits for its update to be let go")
TAKE_PART = (IS_READY, TRAINS, HOLDS)

# Why there is no update: a number leaves, and no text.
DATA, TRAINING, NOT_FINITE, KILLED, LIMITS = range(1, 6)
ERRORS = {
    DATA: "its data cannot be used",
    TRAINING: "training failed",
    NOT_FINITE: "what it learnt is not finite",
    KILLED: "training was ended from outside, by lack of memory perhaps",
    LIMITS: "its own limits forbid it",
}

# What a pack may leave open, within ranges. `patience`: rounds that get no better, after which a run ends; `samples`:
# how many a site may say that it has. These two are the server's, and of no plan.
OPEN = ("rounds", "cohort", "steps", "epochs", "lr", "patience", "samples")

TELL = ("loss", "valid")  # what any update can tell beside its moves
VALID = "valid_"  # begins the names of fields that are of samples kept for evaluation

RUN = Field("run", "u1", (HASH,), "which run this is about; zeros: none")
ALWAYS = (
    Frame(
        "ask",
        (
            RUN,
            Field("doing", "u1", (), f"what this site does: {', '.join(f'{i} {d}' for i, d in enumerate(DOING))}"),
            Field("waits", "u1", (), "1: it is answered when there is something new; 0: at once"),
        ),
        "every half a minute, and when something has changed",
    ),
    Frame(
        "get",
        (
            Field("what", "u1", (HASH,), "hash of what is wanted: a pack, or the agreed weights"),
            Field("start", "u8", (), "the first byte of the piece that is wanted"),
        ),
        "for each piece of them, once a round",
    ),
    Frame(
        "error",
        (
            RUN,
            Field("code", "u1", (), f"what went wrong: {', '.join(f'{i} {e}' for i, e in ERRORS.items())}"),
            Field("count", "u8", (), "how often, since the server heard of it last"),
        ),
        "when a round fails here",
    ),
)
PROTOCOL = Listed(ALWAYS)
HEAD = (
    RUN,
    Field("round", "u8", (), "for which round this is"),
    Field("base", "u1", (HASH,), "hash of the weights that it began with"),
)


def leaves(shapes: Mapping[str, Sequence[int]], local: Local, *, tell: Sequence[str] = ("loss",)) -> Listed:
    """The list of a run over these trained parameters: what any site says, and its updates.

    `tell`: "loss", the mean training loss of the round; "valid", the mean loss over the samples that a site keeps for
    evaluation, and how many these are; and beside that names of what else the objective measures on them ("accuracy").
    """
    fields = [*HEAD]
    if not local.equal:
        fields.append(Field("samples", "u8", (), "how many samples it trained on: the weight of the update"))
    if "loss" in tell:
        fields.append(Field("loss", "f8", (), "mean training loss of the round"))
    if "valid" in tell:
        fields += [
            Field("valid_loss", "f8", (), "mean loss of the weights it began with on samples kept for evaluation"),
            Field("valid_samples", "u8", (), "how many these are"),
        ]
        fields += [
            Field(f"{VALID}{name}", "f8", (), f"{name} of these weights on these samples")
            for name in tell
            if name not in TELL
        ]
    of = {"move": "how far this parameter has come", "control": "how its control has changed (SCAFFOLD)"}
    for part in ("move", *(["control"] if local.controls else [])):
        fields += [Field(f"{part} {name}", "f4", tuple(shape), of[part]) for name, shape in shapes.items()]
    return Listed((*ALWAYS, Frame("update", tuple(fields), "once a round")))


def is_listed_as_said(listed: Listed) -> bool:
    """Whether the frames that have no update in them are listed as they are sent: a person has agreed to the list."""
    return tuple(frame for frame in listed.frames if frame.kind != "update") == ALWAYS


def vector(listed: Listed, found: Mapping[str, NDArray[Any]], part: str) -> NDArray[np.float32]:
    """The fields of an update that are `part`, one behind the other."""
    names = [f.name for f in listed.frame("update").fields if f.name.startswith(f"{part} ")]
    return np.concatenate([found[name].reshape(-1) for name in names]) if names else np.zeros(0, np.float32)


def fields(listed: Listed, flat: NDArray[np.float32], part: str) -> dict[str, NDArray[np.float32]]:
    """The other way."""
    wanted = [f for f in listed.frame("update").fields if f.name.startswith(f"{part} ")]
    ends = np.cumsum([int(np.prod(f.shape)) for f in wanted])
    return {f.name: one.reshape(f.shape) for f, one in zip(wanted, np.split(flat, ends[:-1]), strict=True)}


def size_of_weights(listed: Listed) -> int:
    """Bytes of what is agreed on in a run with this list, controls included: as many numbers as leave."""
    found = [f for f in listed.frame("update").fields if f.name.startswith(("move ", "control "))]
    return 4 * sum(math.prod(f.shape) for f in found)


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def outside(settings: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """The settings of a run that its pack does not allow, in words.

    >>> outside({"epochs": 9, "lr": 0.1}, {"epochs": (1, 5)})
    ['epochs=9, allowed 1 to 5', 'lr=0.1, which is not open']
    """
    found = []
    for name, value in settings.items():
        low, high = ranges.get(name, (1.0, 0.0))
        if not low <= value <= high:
            found.append(
                f"{name}={value:g}, " + (f"allowed {low:g} to {high:g}" if low <= high else "which is not open")
            )
    return found


def told_of(plan: Convoy) -> dict[str, Any]:
    """A plan as a pack has it."""
    fields: dict[str, Any] = plan.describe()
    default = Local()
    local = asdict(fields.pop("local", default))
    fields["local"] = {name: value for name, value in local.items() if value != getattr(default, name)}
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]


def convoy_of(plan: Mapping[str, Any], settings: Mapping[str, float]) -> Convoy:
    """The plan of a run. Raises: PlanError; StateError for a pack of another version."""
    try:
        fields, local = {**plan}, {**plan["local"]}
        if "personal" in local:
            local["personal"] = tuple(local["personal"])
        for name, value in settings.items():
            if name in ("rounds", "cohort"):
                fields[name] = int(value)
            elif name in ("steps", "epochs"):
                local[name] = int(value) if name == "steps" else value
        return Convoy(**{**fields, "local": Local(**local)})
    except (KeyError, TypeError, ValueError) as error:
        raise StateError("the plan of this pack is of another version of konvoi", found=str(error)) from None


@dataclass(frozen=True)
class Started:
    """A run as it was submitted. Its hash is what sites and server call it."""

    federation: str  # its id
    id: str
    pack: str  # hash
    settings: Mapping[str, float]
    first: int  # sites that it waits for
    least: int  # updates of a round

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


ENDED = ("over", "stopped")
STATES = ("waits", "runs", *ENDED)


@dataclass(frozen=True)
class Facts:
    """What a site is told of a run."""

    run: Started
    state: str  # of STATES
    round: int  # that is to be decided
    rounds: int
    base: str  # hash of the newest weights
    size: int  # bytes of them
    cohort: tuple[str, ...]  # of this round
    wanted: bool  # whether this site is to train on them
    counted: str  # hash of this site's update that counted last
    refused: str = ""  # why this site's last update was not taken
    roster: int = 0  # entries of the roster that the server goes by


def as_json(facts: Facts) -> bytes:
    return json.dumps(asdict(facts)).encode()

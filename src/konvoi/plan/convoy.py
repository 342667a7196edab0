"""The convoy as a value: islands that agree now and then, and the field's names for ways to do it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from konvoi.errors import PlanError, did_you_mean
from konvoi.plan.compress import four_bit, int8, low_bit, none, top_k
from konvoi.plan.compress.codec import Codec
from konvoi.plan.island import Island
from konvoi.plan.island import parse as parse_island
from konvoi.plan.sync.state import Rules

UPDATES = ("moves", "gradients")


@dataclass(frozen=True, kw_only=True)
class Convoy:
    """How islands agree. Each trains for `every` steps; what it sends is its update; the weighted mean of the updates
    is decided, and all go on from the same weights.

    - `every`: steps from one agreement to the next.
    - `updates`: "moves", how far an island's weights have come from what was agreed; or "gradients", their mean over
      these steps, with which the job's optimizer then steps everywhere alike.
    - `compression`: of what is sent, in both directions (`kv.compress`).
    - `feedback`: the share of what compression has left out that goes into the next update (arXiv 1901.09847).
    - `outer_lr`, `outer_momentum`: the step that is taken along the mean move, with Nesterov's momentum (arXiv
      2311.08105). 1 and 0 is plain averaging.
    - `fragments`: parts of the model that agree in turn, each every `every` steps (arXiv 2501.18512).
    - `ahead`: steps that may be taken while an agreement is on its way; then an island waits for it.
    - `servers`: names of processes that add up and decide, instead of the islands themselves.
    - `witness`: a third process without model or data, which breaks the tie of two islands.
    - `quorum`, `deadline_s`: so long after the first update, that share of the islands is enough; the others' work
      counts in the next round.

    >>> Convoy(every=50).describe()
    {'every': 50}
    """

    every: int = 100
    updates: str = "moves"
    compression: Codec = field(default_factory=none)
    feedback: float = 1.0
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    fragments: int = 1
    ahead: int = 0
    servers: tuple[str, ...] = ()
    witness: str = ""
    quorum: float = 0.5
    deadline_s: float = 30.0
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("fragments", 1), ("ahead", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise PlanError(f"{name} is a number of at least {least}", found=repr(value))
        if self.updates not in UPDATES:
            raise PlanError(
                "an update is a move or a gradient", found=self.updates, hint=did_you_mean(self.updates, UPDATES)
            )
        for name, low, high in (("feedback", 0, 1), ("outer_momentum", 0, 0.9999), ("quorum", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise PlanError(f"{name} lies between {low} and {high}", found=repr(getattr(self, name)))
        for name in ("outer_lr", "deadline_s", "patience_s"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name} is above 0", found=repr(getattr(self, name)))
        if self.updates == "gradients" and (self.outer_lr, self.outer_momentum) != (1.0, 0.0):
            raise PlanError(
                "gradients are stepped with by the job's optimizer",
                found=f"outer_lr={self.outer_lr}, outer_momentum={self.outer_momentum}",
                hint='updates="moves", or leave the outer step at 1 and 0',
            )
        if self.updates == "gradients" and self.fragments > 1:
            raise PlanError("gradients agree whole", found=f"fragments={self.fragments}", hint='updates="moves"')
        if self.every % self.fragments:
            raise PlanError(
                "fragments agree in turn, at equal distances",
                found=f"fragments={self.fragments} in {self.every} steps",
                hint=f"every={-(-self.every // self.fragments) * self.fragments}",
            )

    def __ror__(self, island: Island) -> Plan:
        """
        >>> (Island(dp=2) | diloco(every=50)).convoy.every
        50
        """
        return Plan(island, self) if isinstance(island, Island) else NotImplemented

    @property
    def num_workers(self) -> int:
        """Of each island, where the convoy is the whole plan."""
        return 1

    @property
    def steps_per_round(self) -> int:
        return self.every // self.fragments

    def rules(self, num_parts: int, lease: int) -> Rules:
        """What the machine goes by. `lease`: samples that an island reads in a round."""
        return Rules(
            every=self.steps_per_round,
            num_parts=num_parts,
            lease=lease,
            quorum=self.quorum,
            deadline_s=self.deadline_s,
            patience_s=self.patience_s,
            max_ahead=self.ahead,
            servers=self.servers,
            witness=self.witness,
        )

    def derived(self, batch: int, num_steps: int) -> tuple[str, ...]:
        """What this length and an island's share of the batch decide, as a person reads it.

        >>> local_sgd(every=16).derived(8, 160)
        ('convoy: an agreement every 16 steps, 10 in all; an island reads 8 samples a step',)
        """
        number = num_steps // self.steps_per_round
        each = f"an agreement every {self.steps_per_round} steps, {number} in all"
        return (f"convoy: {each}; an island reads {batch} samples a step",)

    def describe(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        default = Convoy()
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in changed.items() if value != getattr(default, name)}

    @property
    def hash(self) -> str:
        """Of everything that decides what is learnt, and what is sent."""
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Plan:
    """Islands, and how they agree: `kv.Island(fsdp=8) | kv.diloco(every=100)`."""

    island: Island
    convoy: Convoy

    @property
    def num_workers(self) -> int:
        """Of each island."""
        return self.island.num_workers


def parameter_server(*, every: int = 1, servers: tuple[str, ...] = ("server",), **other: Any) -> Convoy:
    """Gradients to servers, which add them up; the job's optimizer steps on the sum (Li et al., Scaling Distributed
    Machine Learning with the Parameter Server, OSDI 2014). Synchronous; equal to data parallelism.

    >>> parameter_server().updates
    'gradients'
    """
    return Convoy(every=every, updates="gradients", servers=servers, **other)


def local_sgd(*, every: int = 8, **other: Any) -> Convoy:
    """Each island steps by itself; now and then all take the mean of their weights (Stich, arXiv 1805.09767).

    >>> local_sgd(every=16).outer_lr
    1.0
    """
    return Convoy(every=every, **other)


def diloco(*, every: int = 100, outer_lr: float = 0.7, outer_momentum: float = 0.9, **other: Any) -> Convoy:
    """Local steps, and an outer Nesterov step along their mean move (Douillard et al., arXiv 2311.08105, algorithm 1).

    >>> diloco().outer_momentum
    0.9
    """
    return Convoy(every=every, outer_lr=outer_lr, outer_momentum=outer_momentum, **other)


def streaming_diloco(
    *, every: int = 100, fragments: int = 5, outer_lr: float = 0.7, outer_momentum: float = 0.9, **other: Any
) -> Convoy:
    """DiLoCo of which a fragment at a time is under way, while training goes on (Douillard et al., arXiv 2501.18512).

    >>> streaming_diloco(every=100, fragments=4).ahead
    25
    """
    ahead = other.pop("ahead", every // fragments)
    return Convoy(
        every=every, fragments=fragments, outer_lr=outer_lr, outer_momentum=outer_momentum, ahead=ahead, **other
    )


PRESETS: dict[str, Callable[..., Convoy]] = {
    "convoy": Convoy,
    "diloco": diloco,
    "local_sgd": local_sgd,
    "parameter_server": parameter_server,
    "streaming_diloco": streaming_diloco,
}
CODECS: dict[str, Callable[..., Codec]] = {
    "none": none,
    "int8": int8,
    "four_bit": four_bit,
    "low_bit": low_bit,
    "top_k": top_k,
}


def parse(text: str) -> Island | Plan:
    """A plan from the command line: an island's fields, and behind a bar a preset with its own. Raises: PlanError.

    >>> parse("dp=2 | diloco,every=50") == Island(dp=2) | diloco(every=50)
    True
    """
    left, bar, right = text.partition("|")
    island = parse_island(left)
    if not bar:
        return island
    name, *items = [item.strip() for item in right.split(",")]
    if name not in PRESETS:
        raise PlanError("unknown kind of convoy", found=repr(name), hint=did_you_mean(name, PRESETS))
    values: dict[str, Any] = {}
    kinds = {f.name: f.type for f in dataclasses.fields(Convoy)}
    for item in items:
        field_, _, value = item.partition("=")
        if field_ not in kinds:
            raise PlanError("unknown field of a convoy", found=field_, hint=did_you_mean(field_, kinds))
        values[field_] = _read(field_, value, str(kinds[field_]))
    return island | PRESETS[name](**values)


def _read(name: str, value: str, kind: str) -> Any:
    if kind == "Codec":
        codec, _, number = value.partition(":")
        if codec not in CODECS:
            raise PlanError("unknown compression", found=repr(codec), hint=did_you_mean(codec, CODECS))
        return CODECS[codec](*([_number(name, number)] if number else []))
    if kind == "tuple[str, ...]":
        return tuple(value.split("+"))
    return _number(name, value) if kind in ("int", "float") else value


def _number(name: str, value: str) -> int | float:
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise PlanError(f"{name} is a number", found=repr(value)) from None

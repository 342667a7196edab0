"""The field's names for ways to agree, each a few values with its paper; and plans as the command line has them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from konvoi.errors import PlanError, did_you_mean
from konvoi.plan.compress import four_bit, frequencies, int8, ladder, largest_of, low_bit, none, power_sgd, top_k
from konvoi.plan.compress.codec import Codec
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.federated import fedadagrad, fedadam, fedavg, fedbuff, fedprox, fedyogi, scaffold
from konvoi.plan.island import Island, as_bool
from konvoi.plan.island import parse as parse_island
from konvoi.plan.local import Local


def parameter_server(*, every: int = 1, servers: tuple[str, ...] = ("server",), **other: Any) -> Convoy:
    """Gradients to servers, which add them up; the job's optimizer steps on the sum (Li et al., Scaling Distributed
    Machine Learning with the Parameter Server, OSDI 2014). Synchronous; equal to data parallelism. Each server is a
    process of its own, which adds up its range of the parameters; islands have one worker each, so far.

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


def decoupled_momentum(*, momentum: float = 0.999, number: int = 32, every: int = 1, **other: Any) -> Convoy:
    """Gradients go into a momentum of each island's own; of it the strongest frequencies are sent, and taken out (Peng
    et al., arXiv 2411.19870, algorithm 1). With `optimizers.adamw(betas=(0.0, 0.0))` the step is their sign, as there.
    `number`: of each 4096 values.

    >>> decoupled_momentum().feedback
    0.999
    """
    fields: dict[str, Any] = {"compression": frequencies(number), "updates": "gradients"}
    return Convoy(**{**fields, "every": every, "feedback": momentum, **other})


def async_sgd(*, every: int = 1, damping: float = 0.5, **other: Any) -> Convoy:
    """Nobody waits: each island's update is taken by itself, as soon as it comes, and damped by its staleness (Dean et
    al., Large Scale Distributed Deep Networks, NeurIPS 2012; Xie et al., arXiv 1903.03934). With SGD inside and
    `every=1` an update is a gradient times the rate. Moves add up instead of being averaged: n islands want about an
    n-th of the rate, or `outer_lr=1/n`. A slow island's steps are numbered by what all have read, with gaps; a quick
    one counts its own.

    >>> async_sgd().at_once
    1
    """
    fields: dict[str, Any] = {
        "at_once": 1,
        "quorum": 0.0,
        "deadline_s": 0.0,
        "ahead": 8 * every,
    }
    return Convoy(**{**fields, "every": every, "damping": damping, **other})


def gossip(*, every: int = 8, **other: Any) -> Convoy:
    """Now and then an island and one other take the mean of their weights; nobody leads, and nobody's end ends it (Lian
    et al., Asynchronous Decentralized Parallel SGD, arXiv 1710.06952). At the end all have the mean of
    all.

    >>> gossip().partners
    'pairs'
    """
    return Convoy(every=every, partners="pairs", **other)


def stale_synchronous(*, every: int = 8, max_staleness: int = 3, **other: Any) -> Convoy:
    """Who is there agrees, without the others' work; but who is left behind by `max_staleness` agreements is waited
    for, for `patience_s` (Ho et al., More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server,
    NeurIPS 2013). Steps are numbered as those of `async_sgd`.

    >>> stale_synchronous().max_staleness
    3
    """
    fields: dict[str, Any] = {"quorum": 0.0, "deadline_s": 0.0, "ahead": 8 * every}
    return Convoy(**{**fields, "every": every, "max_staleness": max_staleness, **other})


def adaptive(*, max_comm_fraction: float = 0.1, every: int = 16, **other: Any) -> Convoy:
    """Local steps, and as many of them, and as few bits, as the links want: an exchange takes at most
    `max_comm_fraction` of a round, as measured in each. It begins with `every` steps and one bit; where links carry
    more, it comes to an agreement at every step, in full.

    >>> adaptive(max_comm_fraction=0.05).every
    16
    """
    fields: dict[str, Any] = {"compression": ladder()}
    return Convoy(**{**fields, "every": every, "max_comm_fraction": max_comm_fraction, **other})


PRESETS: dict[str, Callable[..., Convoy]] = {
    "adaptive": adaptive,
    "async_sgd": async_sgd,
    "convoy": Convoy,
    "decoupled_momentum": decoupled_momentum,
    "diloco": diloco,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedavg": fedavg,
    "fedbuff": fedbuff,
    "fedprox": fedprox,
    "fedyogi": fedyogi,
    "gossip": gossip,
    "local_sgd": local_sgd,
    "parameter_server": parameter_server,
    "scaffold": scaffold,
    "stale_synchronous": stale_synchronous,
    "streaming_diloco": streaming_diloco,
}
CODECS: dict[str, Callable[..., Codec]] = {
    "none": none,
    "int8": int8,
    "four_bit": four_bit,
    "frequencies": frequencies,
    "ladder": ladder,
    "largest_of": largest_of,
    "low_bit": low_bit,
    "power_sgd": power_sgd,
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
    kinds = {f.name: f.type for kind in (Convoy, Local) for f in dataclasses.fields(kind)} | {"buffer": "int"}
    for item in items:
        field_, _, value = item.partition("=")
        if field_ not in kinds:
            raise PlanError("unknown field of a convoy", found=field_, hint=did_you_mean(field_, kinds))
        values[field_] = _read(field_, value, str(kinds[field_]))
    try:
        return island | PRESETS[name](**values)
    except TypeError:
        known = [*inspect.signature(PRESETS[name]).parameters]
        wrong = next((field_ for field_ in values if field_ not in known), "")
        raise PlanError(f"{name} has no such field", found=wrong, expected=", ".join(known)) from None


def _read(name: str, value: str, kind: str) -> Any:
    if kind == "Codec":
        codec, _, number = value.partition(":")
        if codec not in CODECS:
            raise PlanError("unknown compression", found=repr(codec), hint=did_you_mean(codec, CODECS))
        return CODECS[codec](*([_number(name, number)] if number else []))
    if kind == "tuple[str, ...]":
        return tuple(value.split("+"))
    if kind == "bool":
        return as_bool(name, value)
    return _number(name, value) if kind in ("int", "float") else value


def _number(name: str, value: str) -> int | float:
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise PlanError(f"{name} is a number", found=repr(value)) from None

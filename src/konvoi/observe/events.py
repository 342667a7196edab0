"""Events: typed, frozen values. One line of JSON each in `events.jsonl`; `to_json` and `from_json` are inverse."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """`time` is seconds since the epoch, taken where the event happened."""

    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """Everything is checked; workers are about to start (again, where `attempt` > 0)."""

    run: str  # the run folder
    job: Mapping[str, Any]  # Job.describe()
    plan: Mapping[str, Any]  # the island's fields that differ from their defaults
    fleet: str  # "local: 2 workers on cpu"
    num_steps: int
    attempt: int = 0
    resumed_from: int | None = None  # the checkpoint's step
    derived: tuple[str, ...] = ()  # "1. width = 64 x depth = 384 (source)"; each can be overridden
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """All workers hold the model; the first step comes next."""

    num_parameters: int
    seconds: float  # from the launch to here
    note: str = ""  # how it will be done, where that was found out here


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    step: int  # 1 is the first
    loss: float  # nats per unit of weight, over the global batch
    grad_norm: float  # before clipping
    lr: float
    weight: float  # tokens or samples that counted
    seconds: float  # the whole step
    data_s: float  # of it: waiting for samples
    wait_s: float  # of it: waiting for other workers
    skipped: bool = False  # non-finite, left out everywhere
    scale: float = 1.0  # loss scale


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    step: int
    split: str  # "valid", or "clients" where they evaluate on their own
    values: Mapping[str, float]  # "loss", "bits_per_byte", "accuracy"
    seconds: float
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class ClientsEvaluated(Event):
    """How unlike the figures are that clients find, each on samples of its own; their mean is an `Evaluated`."""

    step: int
    split: str  # "clients"
    clients: int  # who had samples to evaluate on
    spread: Mapping[str, Mapping[str, float]]  # of "loss", "accuracy": min, p10, median, p90, max, std over clients


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    step: int
    path: str
    size_bytes: int
    blocked_s: float  # time that training stood still for it
    seconds: float  # until it was whole on disk


@dataclass(frozen=True, kw_only=True)
class WorkerDied(Event):
    worker: int
    host: str
    reason: str  # "signal SIGKILL", "exit status 3"
    step: int | None


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    attempt: int
    max_restarts: int
    from_step: int  # 0: from the beginning


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something that a user should know and that stops nothing."""

    message: str
    worker: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreed(Event):
    """Islands have agreed, as this one sees it; it goes on from the sum."""

    round: int
    counted: Mapping[str, int]  # whose updates are in it, and how many samples each has read for its own
    sent_bytes: int  # by this island, since its process began
    every: int = 0  # steps of the next round, where the convoy chooses


@dataclass(frozen=True, kw_only=True)
class Averaged(Event):
    """An island that gossips has taken the mean with another."""

    peer: str
    count: int  # of such exchanges
    sent_bytes: int  # by this island, since its process began


@dataclass(frozen=True, kw_only=True)
class RoundDone(Event):
    """A round of a federation that is simulated."""

    round: int
    asked: int  # clients
    counted: int  # whose updates went in; 0: the round came to nothing
    refused: int  # updates that were not finite
    clock: float  # seconds that it took, or its end where nobody waits, of the simulated clock


@dataclass(frozen=True, kw_only=True)
class StateFetched(Event):
    """An island that was away, or is new, has what the others have agreed on."""

    round: int
    size_bytes: int  # that came over the network
    seconds: float  # that they took


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """What a language model writes after `prompt`, for people to look at."""

    step: int  # 0: before training
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    reason: str  # "finished", "stopped", "early stopping", "failed"
    step: int
    seconds: float
    message: str = ""


Emit = Callable[[Event], None]
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}


def to_json(event: Event) -> str:
    """One line. A float that is not finite becomes the string "nan", "inf" or "-inf", as JSON has none.

    >>> from_json(to_json(Warned(message="x", time=1.0)))
    Warned(time=1.0, message='x', worker=None)
    """
    fields = {f.name: _plain(getattr(event, f.name)) for f in dataclasses.fields(event)}
    return json.dumps({"event": type(event).__name__, **fields}, allow_nan=False, default=str)


def from_json(line: str) -> Event:
    """Raises: KeyError for an unknown kind, ValueError for a line that is no JSON."""
    fields: dict[str, Any] = json.loads(line)
    kind = KINDS[fields.pop("event")]
    types = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    return kind(**{name: _typed(types[name], value) for name, value in fields.items() if name in types})


def _typed(annotation: str, value: Any) -> Any:
    """What JSON could not say: floats that are not finite, and tuples."""
    if annotation == "float":
        return float(value)
    if annotation == "Mapping[str, float]":
        return {key: float(item) for key, item in value.items()}
    if annotation == "Mapping[str, Mapping[str, float]]":
        return {key: _typed("Mapping[str, float]", item) for key, item in value.items()}
    return tuple(value) if annotation.startswith("tuple") else value


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

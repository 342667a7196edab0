"""One event in one sentence, for terminals and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from konvoi.observe.events import (
    CheckpointSaved,
    ClientsEvaluated,
    Evaluated,
    Event,
    Ready,
    Restarted,
    RoundDone,
    RunEnded,
    RunStarted,
    Sampled,
    StateFetched,
    Warned,
    WorkerDied,
)
from konvoi.units import format_bytes, format_count, format_seconds, visible


def sentence(event: Event) -> str:
    """Empty for what is shown as progress: steps, what islands agree on, and rounds in which nothing is amiss.

    >>> sentence(WorkerDied(worker=1, host="alpha", reason="signal SIGKILL", step=812))
    'worker 1 on alpha died at step 812: signal SIGKILL'
    """
    match event:
        case RunStarted():
            start = f"resumed from step {event.resumed_from:,}" if event.resumed_from else "started"
            return start + (f", attempt {event.attempt}" if event.attempt else "")
        case Ready():
            text = f"ready after {format_seconds(event.seconds)}: {format_count(event.num_parameters)} parameters"
            return f"{text}; {event.note}" if event.note else text
        case Evaluated():
            best = " (best)" if event.best else ""
            return f"step {event.step:,}: {event.split} {figures(event.values)}{best}"
        case ClientsEvaluated():
            told = "; ".join(f"{name.replace('_', ' ')} {figures(values)}" for name, values in event.spread.items())
            return f"step {event.step:,}: over {event.clients:,} {event.split}: {told}"
        case CheckpointSaved():
            took = f"in {format_seconds(event.seconds)}, training stood still for {format_seconds(event.blocked_s)}"
            return f"step {event.step:,}: checkpoint saved, {format_bytes(event.size_bytes)} {took}"
        case WorkerDied():
            step = f" at step {event.step:,}" if event.step is not None else ""
            return f"worker {event.worker} on {event.host} died{step}: {event.reason}"
        case Restarted():
            origin = f"step {event.from_step:,}" if event.from_step else "the beginning"
            return f"restarted from {origin}, restart {event.attempt} of {event.max_restarts}"
        case Warned():
            return event.message if event.worker is None else f"worker {event.worker}: {event.message}"
        case StateFetched():
            size, took = format_bytes(event.size_bytes), format_seconds(event.seconds)
            return f"the agreed state of round {event.round:,} is here: {size} in {took}"
        case RoundDone() if event.refused or not event.counted:
            refused = f", {event.refused} refused as not finite" if event.refused else ""
            return f"round {event.round:,}: of {event.asked:,} clients {event.counted:,} counted{refused}"
        case Sampled():
            return f"step {event.step:,}: {event.prompt}{event.text}"
        case RunEnded():
            ended = f"{event.reason} at step {event.step:,} after {format_seconds(event.seconds)}"
            return ended + (f": {event.message}" if event.message else "")
    return ""


def header(event: RunStarted) -> list[tuple[str, str]]:
    """(label, text) rows: what runs, how, where, and what was derived."""
    rows = [("run", event.run), ("job", phrase(event.job)), ("plan", phrase(event.plan) or "one worker")]
    origin = f", {sentence(event)}" if event.resumed_from else ""
    rows += [("fleet", event.fleet), ("steps", f"{event.num_steps:,}{origin}")]
    rows += [("derived" if i == 0 else "", line) for i, line in enumerate(event.derived)]
    return [row for row in rows if row[1]]


def figures(values: Mapping[str, float]) -> str:
    """
    >>> figures({"loss": 1.5, "bits_per_byte": 2.164})
    'loss 1.5000 · bits per byte 2.1640'
    """
    return " · ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())


def phrase(fields: Mapping[str, Any]) -> str:
    """A described value on one line; what is unset or itself a mapping is left to the record.

    >>> phrase({"model": "gpt", "steps": 10, "ema": None, "spec": {"vocab_size": 256}})
    'model gpt · steps 10'
    """
    scalars = {name: value for name, value in fields.items() if isinstance(value, (str, int, float)) and value != ""}
    return " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in scalars.items())


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which each column begins at one place, whatever is in them.

    >>> columns([("who", "when"), ("alice", "now")])
    ['who    when', 'alice  now']
    """
    rows = [[*map(visible, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]

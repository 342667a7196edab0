"""What a run's events add up to: its figures, where its time went, what befell it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from konvoi.observe.events import (
    Agreed,
    CheckpointSaved,
    ClientsEvaluated,
    Evaluated,
    Event,
    Ready,
    Restarted,
    RunEnded,
    RunStarted,
    Sampled,
    StateFetched,
    StepDone,
    Warned,
    WorkerDied,
)
from konvoi.observe.sinks.jsonl import evaluations, steps


@dataclass(frozen=True, kw_only=True)
class Account:
    """`steps` and `evaluations` are those that the weights went through; time and incidents count everything."""

    started: RunStarted | None  # the newest
    ended: RunEnded | None  # None while it runs, and where it was killed
    steps: Sequence[StepDone]
    evaluations: Sequence[Evaluated]
    spreads: Sequence[ClientsEvaluated]
    samples: Sequence[Sampled]
    agreements: Sequence[Agreed]
    incidents: Sequence[Event]
    num_parameters: int | None
    began: float
    wall_s: float
    spent: Sequence[tuple[str, float]]  # seconds by what they went into; adds up to wall_s or a little more

    @property
    def weight(self) -> float:
        return sum(step.weight for step in self.steps if not step.skipped)

    @property
    def rate(self) -> float:
        """Units per second of stepping."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.weight for step in self.steps) / seconds if seconds else 0.0

    @property
    def final_loss(self) -> tuple[float, int]:
        """The mean of the last steps' losses, and how many those are."""
        losses = [step.loss for step in self.steps if math.isfinite(step.loss)]
        last = losses[-max(1, min(50, len(losses) // 20)) :]
        return (sum(last) / len(last) if last else math.nan), len(last)

    def held_out(self) -> tuple[str, list[Evaluated]] | None:
        """The figure that tells most, and the evaluations of the first split that have it."""
        for name in ("bits_per_byte", "loss"):
            having = [evaluated for evaluated in self.evaluations if name in evaluated.values]
            if having:
                return name, [evaluated for evaluated in having if evaluated.split == having[0].split]
        return None


def account(events: Sequence[Event]) -> Account:
    """Whatever the run has come to; an empty list is a run that never started."""
    starts = [event for event in events if isinstance(event, RunStarted)]
    ready = [event for event in events if isinstance(event, Ready)]
    kept = steps(events)
    wall_s = sum(span[-1].time - span[0].time for span in _spans(events))
    return Account(
        started=starts[-1] if starts else None,
        ended=events[-1] if events and isinstance(events[-1], RunEnded) else None,
        steps=kept,
        evaluations=evaluations(events, Evaluated),
        spreads=evaluations(events, ClientsEvaluated),
        samples=[event for event in events if isinstance(event, Sampled)],
        agreements=[event for event in events if isinstance(event, Agreed)],
        incidents=_incidents(events),
        num_parameters=ready[-1].num_parameters if ready else None,
        began=events[0].time if events else 0.0,
        wall_s=wall_s,
        spent=_spent(events, kept, wall_s),
    )


def _spans(events: Sequence[Event]) -> list[list[Event]]:
    """The events of each launch: the hours between a stop and its resumption are nobody's. Restarts stay inside."""
    spans: list[list[Event]] = []
    for event in events:
        if not spans or (isinstance(event, RunStarted) and event.attempt == 0):
            spans.append([])
        spans[-1].append(event)
    return spans


def _spent(events: Sequence[Event], kept: Sequence[StepDone], wall_s: float) -> list[tuple[str, float]]:
    """Ordered as drawn. "other" is what no event accounts for: noticing a death, settling, closing."""
    stood = sum(step.seconds for step in kept)
    data_s, wait_s = sum(step.data_s for step in kept), sum(step.wait_s for step in kept)
    every = sum(event.seconds for event in events if isinstance(event, StepDone))
    spent = [
        ("compute", max(stood - data_s - wait_s, 0.0)),
        ("waiting on data", data_s),
        ("waiting on others", wait_s),
        ("evaluation", sum(event.seconds for event in events if isinstance(event, Evaluated))),
        ("checkpoints", sum(event.blocked_s for event in events if isinstance(event, CheckpointSaved))),
        ("start-up", sum(event.seconds for event in events if isinstance(event, Ready))),
        ("steps done again", every - stood),
    ]
    spent.append(("other", max(wall_s - sum(seconds for _, seconds in spent), 0.0)))
    return [(name, seconds) for name, seconds in spent if seconds > 0]


def _incidents(events: Sequence[Event]) -> list[Event]:
    """Deaths, restarts, fetched states, resumptions, skipped steps and the end; a warning said often is kept once, with
    its count."""
    warnings = Counter((event.message, event.worker) for event in events if isinstance(event, Warned))
    incidents: list[Event] = []
    for event in events:
        match event:
            case WorkerDied() | Restarted() | StateFetched() | RunEnded():
                incidents.append(event)
            case RunStarted() if event.attempt == 0:
                incidents.append(event)
            case Warned() if count := warnings.pop((event.message, event.worker), 0):
                times = f" ({count} times)" if count > 1 else ""
                incidents.append(Warned(time=event.time, message=event.message + times, worker=event.worker))
    return sorted(incidents + _skipped(events), key=lambda event: event.time)


def _skipped(events: Sequence[Event]) -> list[Event]:
    skipped = [event for event in events if isinstance(event, StepDone) and event.skipped]
    if not skipped:
        return []
    named = ", ".join(f"{step.step:,}" for step in skipped[:10]) + (", …" if len(skipped) > 10 else "")
    counted = "1 step" if len(skipped) == 1 else f"{len(skipped)} steps"
    message = f"{counted} left out for gradients that were not finite: {named}"
    return [Warned(time=skipped[0].time, message=message)]

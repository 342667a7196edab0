"""How far a run is: a value that each event moves on, and the words for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from konvoi.observe.events import Event, Ready, Restarted, RunEnded, RunStarted, StepDone, WorkerDied
from konvoi.units import format_count, format_seconds


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`loss` and the rates are moving averages of about the last twenty steps."""

    num_steps: int = 0
    step: int = 0
    unit: str = "samples"
    phase: str = "starting"  # what is done while there are no steps; empty once they come
    loss: float = math.nan
    lr: float = 0.0
    weight: float = 0.0  # a step
    seconds: float = 0.0  # a step
    data_s: float = 0.0  # a step
    wait_s: float = 0.0  # a step
    num_skipped: int = 0
    num_seen: int = 0  # steps since this start
    seen_since: float = 0.0  # the time at the first of them

    def after(self, event: Event) -> Progress:
        match event:
            case RunStarted():
                return self._after_start(event)
            case Ready():
                return replace(self, phase="first step")
            case StepDone():
                return self._after_step(event)
            case WorkerDied():
                return replace(self, phase="restarting")
            case Restarted():
                return replace(self, phase="restarting", step=event.from_step, num_seen=0)
            case RunEnded():
                return replace(self, phase=event.reason)
        return self

    def _after_start(self, event: RunStarted) -> Progress:
        unit = str(event.job.get("unit", "samples"))
        step = event.resumed_from or 0
        return replace(self, num_steps=event.num_steps, step=step, unit=unit, phase="starting workers", num_seen=0)

    def _after_step(self, event: StepDone) -> Progress:
        # The first step also pays for compiling and allocating: the second replaces it.
        mix = 1.0 if self.num_seen <= 1 else max(1 / self.num_seen, 0.05)
        loss = self.loss if not math.isfinite(event.loss) else _moved(self.loss, event.loss, mix)
        return replace(
            self,
            phase="",
            step=event.step,
            loss=loss,
            lr=event.lr,
            weight=_moved(self.weight, event.weight, mix),
            seconds=_moved(self.seconds, event.seconds, mix),
            data_s=_moved(self.data_s, event.data_s, mix),
            wait_s=_moved(self.wait_s, event.wait_s, mix),
            num_skipped=self.num_skipped + event.skipped,
            num_seen=self.num_seen + 1,
            seen_since=event.time if self.num_seen == 0 else self.seen_since,
        )

    def remaining_s(self, now: float) -> float | None:
        """By the time that went by since the first step, so evaluations and checkpoints are in it."""
        if self.num_seen < 2 or self.num_steps <= self.step:
            return None
        return (self.num_steps - self.step) * max(now - self.seen_since, 0.0) / (self.num_seen - 1)


def words(progress: Progress, now: float) -> list[str]:
    """The most important first, so that a narrow terminal can leave out the rest."""
    done = f"{progress.step:,}/{progress.num_steps:,}"
    if progress.phase:
        return [done, progress.phase]
    said = [done, f"loss {progress.loss:.4f}", rate(progress.weight, progress.seconds, progress.unit)]
    remaining_s = progress.remaining_s(now)
    said += [f"ETA {format_seconds(remaining_s)}"] if remaining_s is not None else []
    said += [f"data {share(progress.data_s, progress.seconds)}", f"others {share(progress.wait_s, progress.seconds)}"]
    said += [f"lr {progress.lr:.2e}"]
    return said + ([f"skipped {progress.num_skipped}"] if progress.num_skipped else [])


def rate(amount: float, seconds: float, unit: str) -> str:
    """
    >>> rate(16384, 0.5, "tokens"), rate(8, 2.5, "samples")
    ('32.8 k tokens/s', '3.2 samples/s')
    """
    per_s = amount / seconds if seconds > 0 else 0.0
    return f"{per_s:.1f} {unit}/s" if per_s < 100 else f"{format_count(per_s)} {unit}/s"


def share(part: float, whole: float) -> str:
    """
    >>> share(0.004, 1.0), share(1, 3)
    ('0.4%', '33%')
    """
    percent = 100 * part / whole if whole > 0 else 0.0
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"


def _moved(mean: float, value: float, mix: float) -> float:
    return value if mix == 1.0 or not math.isfinite(mean) else mean + mix * (value - mean)

"""`events.jsonl`: the record that everything else is made from, one line an event."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from konvoi.errors import DiskFull
from konvoi.observe.events import (
    ClientsEvaluated,
    Evaluated,
    Event,
    Restarted,
    RunStarted,
    StepDone,
    from_json,
    to_json,
)

E = TypeVar("E", Evaluated, ClientsEvaluated)


class Jsonl:
    """Appends to `events.jsonl` in the run folder.

    Every line goes to the kernel at once, steps too: at some 5 µs a line that is cheaper than a thread that flushes
    in time, kill -9 loses nothing, and a forked child inherits no half-full buffer.

    Raises: DiskFull.
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.path = Path(run_folder) / "events.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        if _ends_in_a_cut_line(self.path):
            self._write(b"\n")  # else our first event would be glued to what a killed process left

    def __call__(self, event: Event, /) -> None:
        self._write(to_json(event).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(f"no room to append to {self.path}", hint="free some space, then resume the run") from error


def read_events(path: str | Path) -> list[Event]:
    """The events of a file, or of a run folder; empty where there is none yet.

    Left out: lines that a killed process left unfinished, and kinds of event that a newer Konvoi wrote.
    """
    path = Path(path)
    path = path / "events.jsonl" if path.is_dir() else path
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [event for event in map(_parse, lines) if event is not None]


def steps(events: Iterable[Event]) -> list[StepDone]:
    """The steps that the run's weights went through: of a step done twice the last, of a path left behind nothing.

    >>> done = [StepDone(step=n, loss=0, grad_norm=0, lr=0, weight=1, seconds=1, data_s=0, wait_s=0) for n in (1, 2, 3)]
    >>> [step.step for step in steps([*done, Restarted(attempt=1, max_restarts=3, from_step=1), done[1]])]
    [1, 2]
    """
    kept: list[StepDone] = []
    for event in events:
        done = _steps_that_stand(event)
        while kept and done is not None and kept[-1].step > done:
            kept.pop()
        if isinstance(event, StepDone):
            kept.append(event)
    return kept


def evaluations(events: Iterable[Event], kind: type[E]) -> list[E]:
    """As `steps`, for evaluations: at most one a step and split, in the order of their steps."""
    kept: dict[tuple[int, str], E] = {}
    for event in events:
        done = _steps_that_stand(event)
        if done is not None:
            kept = {key: value for key, value in kept.items() if key[0] <= done}
        if isinstance(event, kind):
            kept[event.step, event.split] = event
    return sorted(kept.values(), key=lambda evaluated: evaluated.step)


def _steps_that_stand(event: Event) -> int | None:
    """How many of the steps reported so far still count after this event; None: all."""
    if isinstance(event, StepDone):
        return event.step - 1
    if isinstance(event, Restarted):
        return event.from_step
    if isinstance(event, RunStarted):
        return event.resumed_from or 0
    return None


def _parse(line: str) -> Event | None:
    try:
        return from_json(line)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None


def _ends_in_a_cut_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

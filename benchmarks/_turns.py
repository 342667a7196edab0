"""Programs that are all alive and run by turns, a few steps each, so that drift of the machine hits all alike.

Whole runs that follow each other are minutes apart, and a shared machine is 10 % slower or quicker by then. Here each
program runs as its users run it, in a process tree of its own; between its turns all of the tree is stopped by signal
but its root, which only watches. A step that a stop interrupted is left out of every figure.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

import _programs
import _work
from _harness import say
from _programs import Order, Trace


@dataclass(frozen=True)
class Turn:
    """What one program did in one turn: the time of every step that nothing interrupted, in seconds."""

    first: int  # the first of these steps; 1 is the program's first
    seconds: tuple[float, ...]

    def span_s(self, steps: int) -> float:
        """Of so many steps: what a stop left out, one or two of them, counts as the median of the others."""
        return sum(self.seconds) + (steps - len(self.seconds)) * statistics.median(self.seconds)


@dataclass(frozen=True)
class Turns:
    trace: Trace
    turns: tuple[Turn, ...]


def take_turns(
    orders: Mapping[str, tuple[str, Order]], *, first: int, per_turn: int, num_turns: int
) -> dict[str, Turns]:
    """Start every program (its name, and its order) and let each do `per_turn` steps at a time, `num_turns` times.

    The first `first` steps, one program after the other, warm up; who begins a round of turns rotates. Raises:
    RuntimeError, with the end of its stderr, where a program fails.
    """
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(_started(program, order, first)) for name, (program, order) in orders.items()
        }
        spans: dict[str, list[tuple[float, float]]] = {name: [] for name in orders}
        names = list(orders)
        for number in range(num_turns):
            say(f"turn {number + 1}/{num_turns}")
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                spans[name].append(running[name].do(first + (number + 1) * per_turn))
        traces = {name: running[name].finish() for name in names}
    return {name: Turns(trace, tuple(_turn(trace, *span) for span in spans[name])) for name, trace in traces.items()}


def _turn(trace: Trace, begin: float, end: float) -> Turn:
    steps = [
        (number, after - before)
        for number, (before, after) in enumerate(itertools.pairwise(trace.ends), start=2)
        if begin <= before and after <= end
    ]
    if not steps:
        raise RuntimeError("a turn in which no step was whole")
    return Turn(steps[0][0], tuple(seconds for _, seconds in steps))


class _Running:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path, program: str, order: Order) -> None:
        self.process, self.folder, self.program, self.order = process, folder, program, order
        self.launched = time.time()
        self.done, self._offset = 0, 0

    def do(self, until: int) -> tuple[float, float]:
        """Go on until so many steps are done, and stop; returns when it went on, and when it stopped."""
        begin = time.time()
        self._signal(signal.SIGCONT)
        while self._steps_done() < until:
            if self.process.poll() is not None:
                _programs.check_ended(self.process, self.folder)
                raise RuntimeError(f"{self.program} ended after {self.done} steps of {self.order.steps}")
            time.sleep(0.05)
        end = time.time()
        self._signal(signal.SIGSTOP)
        return begin, end

    def finish(self) -> Trace:
        self._signal(signal.SIGCONT)
        self.process.wait()
        _programs.check_ended(self.process, self.folder)
        return _programs.read_trace(self.program, self.folder, self.order, self.launched)

    def _signal(self, number: signal.Signals) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _steps_done(self) -> int:
        """Read from what the program leaves as it goes."""
        told = _work.STEPS if self.program in _programs.PEERS else "runs/*/events.jsonl"
        for path in self.folder.glob(told):
            with open(path, "rb") as file:
                file.seek(self._offset)
                new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._offset += len(whole)
                self.done += whole.count(b'"StepDone"')
        return self.done


@contextlib.contextmanager
def _started(program: str, order: Order, first: int) -> Iterator[_Running]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        with _programs.launch(program, order, folder) as process:
            running = _Running(process, folder, program, order)
            say(f"warming up: {program}")
            running.do(first)
            yield running

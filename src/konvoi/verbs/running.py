"""What surrounds a run on the parent's side: the checks before it, its record while it goes on, and a person's stop."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konvoi.errors import DiskFull, KonvoiError, MissingExtra
from konvoi.fleet import torchrun
from konvoi.job.job import Prepared
from konvoi.observe.events import Emit, Event, RunEnded, RunStarted, StepDone
from konvoi.observe.report import write_report
from konvoi.observe.sinks import Sink, fan_out
from konvoi.observe.sinks.jsonl import Jsonl
from konvoi.plan.island import Island
from konvoi.state import record
from konvoi.task import Outcome, Task

MakeSink = Callable[[Path], Sink]  # given the run's folder


@dataclass(frozen=True)
class Keeping:
    """How a run is kept: what changes neither what is learned nor how it is split."""

    name: str | None
    root: Path
    resume: str | bool
    checkpoint_every: int | None
    keep: int
    profile: bool
    sinks: Sequence[MakeSink] | None


def require_net(what: str) -> None:
    """Raises: MissingExtra where what speaks over the network is not installed."""
    for package, module in (("grpcio", "grpc"), ("cryptography", "cryptography"), ("pydantic", "pydantic")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(package, "net", what)


def checked(
    prepared: Prepared,
    plan: Island,
    num_workers: int,
    here: record.Record,
    keeping: Keeping,
    kind: str,
    *,
    again: bool = False,
    batch: int | None = None,
) -> Task:
    """The task, with everything about it checked that can be. `batch`: of this island, where it has a share of the
    global one. Raises: PlanError, CheckpointMismatch."""
    job = prepared.job
    batch = batch or job.global_batch
    plan.check(num_workers=num_workers, global_batch=batch, num_samples=prepared.num_samples)
    derived = plan.derived(batch)
    if plan.pp * plan.tp > 1:
        from konvoi.plan.split import feasible  # loads torch

        num_local = None if torchrun.is_here() else num_workers
        derived += feasible.check(job.model, job.objective, prepared.example(), plan, kind, num_local)
    if keeping.resume and here.newest_step() is not None:
        from konvoi.trained import check_resumable  # loads torch

        check_resumable(job, here)
    every = keeping.checkpoint_every if keeping.checkpoint_every is not None else max(1, prepared.num_steps // 10)
    return Task(
        prepared,
        plan,
        here.folder.resolve(),
        bool(keeping.resume) or again,
        every,
        keeping.keep,
        keeping.profile,
        derived,
    )


class Recording:
    """The run's folder and sinks while it goes on. A failure is recorded, too; the report is written at the end."""

    def __init__(
        self, here: record.Record, task: Task, sinks: Sequence[MakeSink] | None, *, is_silent: bool = False
    ) -> None:
        self.record, self.task, self.is_silent = here, task, is_silent
        self.began, self.step, self.has_ended = time.perf_counter(), 0, False
        self.sinks = (
            []
            if is_silent
            else [Jsonl(here.folder), *(make(here.folder) for make in ((_terminal,) if sinks is None else sinks))]
        )
        self.sink: Emit = fan_out(self.sinks)
        if not is_silent:
            here.write(task.prepared.describe(), task.describe_plan(), record.pickled(task))

    def emit(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.step = event.step
        self.sink(event)

    def begin(self, fleet: str, machine: Mapping[str, Any]) -> None:
        task = self.task
        self.emit(
            RunStarted(
                run=str(self.record.folder),
                job=task.prepared.describe(),
                plan=task.describe_plan(),
                fleet=fleet,
                num_steps=task.prepared.num_steps,
                resumed_from=(task.restore_from or (self.record.newest_step(),))[0] if task.resume else None,
                derived=(
                    *task.prepared.derived,
                    *task.derived,
                    f"checkpoint_every = {task.checkpoint_every}",
                ),
                machine=machine,
            )
        )

    def end(self, outcome: Outcome) -> None:
        self.has_ended = True
        self.emit(RunEnded(reason=outcome.reason, step=outcome.step, seconds=time.perf_counter() - self.began))

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # What went wrong is not hidden by a disk that has no room for its record either.
        unhidden = contextlib.nullcontext() if error is None else contextlib.suppress(OSError, DiskFull)
        if error is not None and kind is not GeneratorExit and not self.has_ended:
            message = str(error) if isinstance(error, KonvoiError) else type(error).__name__
            reason = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            with unhidden:
                self.emit(
                    RunEnded(reason=reason, step=self.step, seconds=time.perf_counter() - self.began, message=message)
                )
        for sink in self.sinks:
            sink.close()
        if not self.is_silent:
            with unhidden:
                write_report(self.record.folder)


def _terminal(_: Path) -> Sink:
    from konvoi.observe.sinks.terminal import terminal

    return terminal() if sys.stderr is not None else fan_out(())  # a service may run with it closed


def how_soon(got: Sequence[int]) -> int:
    """0: go on; 1: save and stop; 2: at once, which takes a person: `timeout` and others send SIGTERM twice."""
    return 2 if len(got) > 1 and got[-1] == signal.SIGINT else min(len(got), 1)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the block; elsewhere than in the main thread they are left alone."""
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    collect: Callable[[int, Any], None] = lambda number, _: got.append(number)  # noqa: E731
    old = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

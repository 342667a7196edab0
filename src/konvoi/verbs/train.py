"""train: from a job, a plan and a fleet to a run."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import DiskFull, JobError, KonvoiError
from konvoi.fleet import torchrun
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import Local, local
from konvoi.fleet.local import run as run_local
from konvoi.job.job import Job, Prepared, prepare
from konvoi.observe.events import Emit, Event, RunEnded, RunStarted, StepDone
from konvoi.observe.report import write_report
from konvoi.observe.sinks import Sink, fan_out
from konvoi.observe.sinks.jsonl import Jsonl
from konvoi.plan.island import Island
from konvoi.state import record
from konvoi.task import Outcome, Task
from konvoi.verbs.run import Run

if TYPE_CHECKING:
    from konvoi.fleet.worker import Place

PRELOAD = ("konvoi.loop",)  # loaded once, in the agent, so that no worker does

READING = "konvoi.state.shards"  # whoever goes on from a checkpoint needs it before the first step

MakeSink = Callable[[Path], Sink]  # given the run's folder


def train(
    job: Job,
    plan: Island | None = None,
    fleet: Local | None = None,
    *,
    name: str | None = None,
    folder: str | Path = "runs",
    resume: str | bool = False,
    checkpoint_every: int | None = None,
    keep: int = 2,
    profile: bool = False,
    sinks: Sequence[MakeSink] | None = None,
    agent: AgentHandle | None = None,
) -> Run:
    """Train a job and return its run, which is a folder `runs/<name>/`.

    Without a plan the fleet's workers are data parallel; without a fleet this computer's
    devices are taken, as many as the plan wants. Started
    by torchrun, every process calls this and the fleet is torchrun's. `resume` is True for the newest run here, or a
    run's name or folder. `checkpoint_every` counts steps (0: only at the end; default: a tenth of the run); the
    newest `keep` stay, and the best. `profile` writes a torch trace of five steps. `sinks` replace the terminal:
    functions from the run's folder to a sink. `agent` is one that was started earlier, to save its start-up.

    Ctrl-C and SIGTERM save a checkpoint and end the run; a second Ctrl-C ends it at once.

    Raises: ConfigError before any worker starts; NonFiniteError, DiskFull; WorkerError with a worker's own traceback;
    KeyboardInterrupt or SystemExit after a stop that was asked for.
    """
    if not isinstance(job, Job):
        raise JobError("train takes a Job", found=type(job).__name__, expected="kv.Job(model=, data=, objective=)")
    keeping = Keeping(name, Path(folder), resume, checkpoint_every, keep, profile, sinks)
    if torchrun.is_here():
        from konvoi.loop import work  # this process is a worker itself

        with _launched(job, plan, keeping) as (place, task, run):
            run.end(work(place, task))
            return Run(run.record.folder)
    with contextlib.ExitStack() as stack:
        return _train_here(
            job,
            plan,
            fleet or local(plan.num_workers if plan else None),
            keeping,
            agent or stack.enter_context(AgentHandle(PRELOAD)),
        )


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


def _train_here(job: Job, plan: Island | None, fleet: Local, keeping: Keeping, agent: AgentHandle) -> Run:
    prepared = prepare(job)  # while the agent loads torch
    here = record.find(keeping.root, keeping.resume) if keeping.resume else record.create(keeping.root, keeping.name)
    machine = agent.hello()["machine"]
    num_workers = fleet.size(machine)
    task = _checked(prepared, plan or Island(dp=num_workers), num_workers, here, keeping, fleet.device_kind(machine))
    body = record.pickled(("konvoi.loop:work", task))
    for needed, module in (
        (task.plan.fsdp > 1, "konvoi.plan.split.fully_shard"),
        (task.plan.tp > 1, "konvoi.plan.split.tensor"),
        (task.plan.compile, "torch._dynamo"),
        (task.resume, READING),
    ):
        if needed:
            agent.load(module)
    with _stop_signals() as stop, here.alone(), _Recording(here, task, keeping.sinks) as run:
        run.begin(f"local: {num_workers} worker{'s' * (num_workers > 1)} on {fleet.device_kind(machine)}", machine)
        outcomes: list[Outcome] = run_local(
            fleet,
            agent,
            body,
            num_workers=num_workers,
            emit=run.emit,
            should_stop=lambda: _how_soon(stop),
            newest_step=lambda: here.newest_step() or 0,
            needed_again=[READING],
        )
        run.end(outcomes[0])
    if outcomes[0].reason == "stopped" and stop:
        raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
    return Run(here.folder)


@contextlib.contextmanager
def _launched(job: Job, plan: Island | None, keeping: Keeping) -> Iterator[tuple[Place, Task, _Recording]]:
    """This process is one of torchrun's workers; the first of them records."""
    from konvoi import devices

    num_workers = torchrun.num_workers()
    here = (
        record.find(keeping.root, keeping.resume)
        if keeping.resume
        else record.Record(keeping.root / (keeping.name or torchrun.run_name()))
    )
    kind = devices.kind()
    task = _checked(
        prepare(job), plan or Island(dp=num_workers), num_workers, here, keeping, kind, again=torchrun.is_restarted()
    )
    is_leader = torchrun.is_leader()
    alone = here.alone() if is_leader else contextlib.nullcontext()
    with alone, _Recording(here, task, keeping.sinks, is_silent=not is_leader) as run:
        run.begin(f"torchrun: {num_workers} workers on {kind}", devices.describe(kind))
        with torchrun.place(kind, devices.num_cores(), run.emit) as place:
            yield place, task, run


def _checked(
    prepared: Prepared,
    plan: Island,
    num_workers: int,
    here: record.Record,
    keeping: Keeping,
    kind: str,
    *,
    again: bool = False,
) -> Task:
    """The task, with everything about it checked that can be. Raises: PlanError, CheckpointMismatch."""
    job = prepared.job
    plan.check(num_workers=num_workers, global_batch=job.global_batch, num_samples=prepared.num_samples)
    derived = plan.derived(job.global_batch)
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


class _Recording:
    """The run's folder and sinks while it goes on. A failure is recorded, too; the report is written at the end."""

    def __init__(
        self, here: record.Record, task: Task, sinks: Sequence[MakeSink] | None, *, is_silent: bool = False
    ) -> None:
        self.record, self.task, self.is_silent = here, task, is_silent
        self.began, self.step = time.perf_counter(), 0
        self.sinks = (
            []
            if is_silent
            else [Jsonl(here.folder), *(make(here.folder) for make in ((_terminal,) if sinks is None else sinks))]
        )
        self.sink: Emit = fan_out(self.sinks)
        if not is_silent:
            here.write(task.prepared.describe(), task.plan.describe(), record.pickled(task))

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
                plan=task.plan.describe(),
                fleet=fleet,
                num_steps=task.prepared.num_steps,
                resumed_from=self.record.newest_step() if task.resume else None,
                derived=(
                    *task.prepared.derived,
                    *task.derived,
                    f"checkpoint_every = {task.checkpoint_every}",
                ),
                machine=machine,
            )
        )

    def end(self, outcome: Outcome) -> None:
        self.emit(RunEnded(reason=outcome.reason, step=outcome.step, seconds=time.perf_counter() - self.began))

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # What went wrong is not hidden by a disk that has no room for its record either.
        unhidden = contextlib.nullcontext() if error is None else contextlib.suppress(OSError, DiskFull)
        if error is not None and kind is not GeneratorExit:
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


def _how_soon(got: Sequence[int]) -> int:
    """0: go on; 1: save and stop; 2: at once, which takes a person: `timeout` and others send SIGTERM twice."""
    return 2 if len(got) > 1 and got[-1] == signal.SIGINT else min(len(got), 1)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
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

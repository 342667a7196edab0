"""train: from a job, a plan and a fleet to a run."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from konvoi.errors import JobError, PlanError
from konvoi.fleet import torchrun
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import Local, local
from konvoi.fleet.local import run as run_local
from konvoi.fleet.simulated import Simulated
from konvoi.job.job import Job, prepare
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.federated import fedavg
from konvoi.plan.island import Island
from konvoi.state import record
from konvoi.task import Outcome, Task
from konvoi.verbs.clients import train_clients
from konvoi.verbs.islands import train_islands
from konvoi.verbs.run import Run
from konvoi.verbs.running import Keeping, MakeSink, Recording, checked, how_soon, stop_signals

if TYPE_CHECKING:
    from konvoi.fleet.worker import Place

PRELOAD = ("konvoi.loop",)  # loaded once, in the agent, so that no worker does

READING = "konvoi.state.shards"  # whoever goes on from a checkpoint needs it before the first step
OF_CLIENTS = ("konvoi.simulate_clients", READING)
OF_ISLANDS = (*PRELOAD, READING, "konvoi.team")  # who comes back has them at once, and no step waits for them


def train(
    job: Job,
    plan: Island | Convoy | Plan | None = None,
    fleet: Local | Simulated | None = None,
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
    devices are taken, as many as the plan wants. A plan with a convoy
    (`kv.Island() | kv.diloco(every=50)`) trains the islands of `kv.fleet.local(4, islands=4)`, each its share of the
    global batch, over gRPC with mutual TLS; the run is the first island's, the others' lie below it. Started by
    torchrun, every process calls this and the fleet is torchrun's. `resume` is True for the newest run here, or a
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
    if isinstance(plan, Convoy):
        plan = Island() | plan
    if isinstance(fleet, Simulated):
        with contextlib.ExitStack() as stack:
            mine = agent or stack.enter_context(AgentHandle(OF_CLIENTS))
            clients = plan if isinstance(plan, Plan) else Island() | fedavg()
            return Run(train_clients(job, clients, fleet, keeping, mine).folder)
    if isinstance(plan, Plan) and plan.convoy.local is not None:
        hint = "fleet=kv.fleet.simulated(kv.data.dirichlet(clients=20, alpha=0.3))"
        raise PlanError("a federation's members have data of their own", found="a fleet without clients", hint=hint)
    if isinstance(plan, Plan):
        return Run(train_islands(job, plan, fleet or local(1), keeping, OF_ISLANDS, agent).folder)
    if torchrun.is_here():
        from konvoi.loop import work  # this process is a worker itself

        with _launched(job, plan, keeping) as (place, task, run):
            run.end(work(place, task))
        gc.collect()  # with process groups go their threads: one that is busy when the interpreter ends aborts it
        return Run(run.record.folder)
    with contextlib.ExitStack() as stack:
        return _train_here(
            job,
            plan,
            fleet or local(plan.num_workers if plan else None),
            keeping,
            agent or stack.enter_context(AgentHandle(PRELOAD)),
        )


def _train_here(job: Job, plan: Island | None, fleet: Local, keeping: Keeping, agent: AgentHandle) -> Run:
    prepared = prepare(job)  # while the agent loads torch
    here = record.find(keeping.root, keeping.resume) if keeping.resume else record.create(keeping.root, keeping.name)
    machine = agent.hello()["machine"]
    num_workers = fleet.size(machine)
    task = checked(prepared, plan or Island(dp=num_workers), num_workers, here, keeping, fleet.device_kind(machine))
    body = record.pickled(("konvoi.loop:work", task))
    for needed, module in (
        (task.plan.fsdp > 1, "konvoi.plan.split.fully_shard"),
        (task.plan.tp > 1, "konvoi.plan.split.tensor"),
        (task.plan.compile, "torch._dynamo"),
        (task.resume, READING),
    ):
        if needed:
            agent.load(module)
    with stop_signals() as stop, here.alone(), Recording(here, task, keeping.sinks) as run:
        run.begin(f"local: {num_workers} worker{'s' * (num_workers > 1)} on {fleet.device_kind(machine)}", machine)
        outcomes: list[Outcome] = run_local(
            fleet,
            agent,
            body,
            num_workers=num_workers,
            emit=run.emit,
            should_stop=lambda: how_soon(stop),
            newest_step=lambda: here.newest_step() or 0,
            needed_again=[READING],
        )
        run.end(outcomes[0])
    if outcomes[0].reason == "stopped" and stop:
        raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
    return Run(here.folder)


@contextlib.contextmanager
def _launched(job: Job, plan: Island | None, keeping: Keeping) -> Iterator[tuple[Place, Task, Recording]]:
    """This process is one of torchrun's workers; the first of them records."""
    from konvoi import devices

    num_workers = torchrun.num_workers()
    here = (
        record.find(keeping.root, keeping.resume)
        if keeping.resume
        else record.Record(keeping.root / (keeping.name or torchrun.run_name()))
    )
    kind = devices.kind()
    task = checked(
        prepare(job), plan or Island(dp=num_workers), num_workers, here, keeping, kind, again=torchrun.is_restarted()
    )
    is_leader = torchrun.is_leader()
    alone = here.alone() if is_leader else contextlib.nullcontext()
    with alone, Recording(here, task, keeping.sinks, is_silent=not is_leader) as run:
        run.begin(f"torchrun: {num_workers} workers on {kind}", devices.describe(kind))
        with torchrun.place(kind, devices.num_cores(), run.emit) as place:
            yield place, task, run

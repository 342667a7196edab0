"""train, where the fleet is clients that are simulated."""

from __future__ import annotations

import dataclasses
import signal

from konvoi.errors import DataError, JobError, PlanError
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import Local
from konvoi.fleet.local import run as run_local
from konvoi.fleet.simulated import Simulated
from konvoi.job.adapt import APPROXIMATE, EXACT
from konvoi.job.data.normalized import columns_of, constants, in_words, known, unnormalized
from konvoi.job.data.of import of
from konvoi.job.data.partition import keep_back
from konvoi.job.data.positions import Ints
from konvoi.job.job import LENGTHS, Job, Prepared, prepare
from konvoi.job.optimizers import SGD
from konvoi.plan.compress import none
from konvoi.plan.convoy import Plan
from konvoi.plan.island import Island
from konvoi.state import record
from konvoi.task import Population
from konvoi.values import Source
from konvoi.verbs.running import Keeping, Recording, checked, how_soon, stop_signals


def check(job: Job, plan: Plan, fleet: Simulated | None = None) -> None:
    """Raises: JobError, PlanError for what a federation cannot do, be its clients simulated or (None) sites."""
    convoy, local = plan.convoy, plan.convoy.local
    if local is None:
        found = ", ".join(convoy.describe())
        raise PlanError("simulated clients have data of their own", found=found, hint="kv.fedavg(rounds=50)")
    if plan.island != Island(precision=plan.island.precision):
        found = ", ".join(plan.island.describe())
        raise PlanError("a simulated client is one worker", found=found, hint="kv.Island(), or no island")
    if given := [name for name in LENGTHS if getattr(job, name) is not None]:
        hint = f"leave it out: {convoy.rounds} rounds of {local} are the length"
        raise JobError("the plan says how long a federation trains", found=", ".join(given), hint=hint)
    if job.ema is not None:
        raise JobError("a federation keeps no average of its weights, so far", found=f"ema={job.ema}")
    if convoy.compression != none():
        raise PlanError("simulated clients send every bit, so far", found=repr(convoy.compression))
    if local.finetune and fleet is not None and not fleet.holdout:
        hint = "kv.fleet.simulated(..., holdout=0.2)"
        raise PlanError(
            "clients have no samples to tell what fine-tuning does", found=f"holdout={fleet.holdout}", hint=hint
        )
    if fleet is not None and fleet.keep_finetuned and not local.finetune:
        raise PlanError("nothing is fine-tuned that could be kept", found="finetune=0", hint="kv.fedavg(finetune=2)")
    if local.controls and not (isinstance(job.optimizer, SGD) and not job.optimizer.momentum):
        hint = "kv.optimizers.sgd(lr=0.1)"
        raise PlanError("controls are of plain SGD (arXiv 1910.06378)", found=repr(job.optimizer), hint=hint)


def _how_adapters_are_averaged(job: Job) -> tuple[str, ...]:
    if job.adapt is None:
        return ()
    return (f"mean of adapters = {EXACT if job.adapt.freeze_a else APPROXIMATE}",)


def _normalised_by(prepared: Prepared) -> tuple[str, ...]:
    told = prepared.splits.description.get("normalized", {})
    return tuple(f"{name}: {in_words(one)} of all clients" for name, one in told.items())


def _divided(job: Job, fleet: Simulated) -> tuple[Prepared, tuple[Ints, ...], tuple[Ints, ...]]:
    """The job's data, what each client trains on, and what it keeps for evaluation; normalised, where the job says so,
    by what clients tell of what they train on. Raises: DataError, JobError."""
    has_held_out = fleet.holdout > 0
    columns = columns_of(job.data)
    prepared = None if columns else prepare(job, held_out=has_held_out)
    splits = of(unnormalized(job.data)).prepare() if prepared is None else prepared.splits
    if not isinstance(splits.train, Source):
        raise DataError("a stream cannot be divided among clients", found=type(splits.train).__name__)
    indices, held_out = map(tuple, keep_back(fleet.division.of(splits.train), fleet.holdout))
    if prepared is None:
        data = known(job.data, constants(splits, columns, indices))
        prepared = prepare(dataclasses.replace(job, data=data), held_out=has_held_out)
    return prepared, indices, held_out


def train_clients(job: Job, plan: Plan, fleet: Simulated, keeping: Keeping, agent: AgentHandle) -> record.Record:
    """Train to the end, and return the run's folder."""
    check(job, plan, fleet)
    root, again = keeping.root, keeping.resume
    prepared, indices, held_out = _divided(job, fleet)  # while the agent loads torch
    size, local = len(indices), plan.convoy.local
    assert local is not None
    if plan.convoy.cohort > size:
        raise PlanError("a cohort is larger than the federation", found=plan.convoy.cohort, expected=f"at most {size}")
    here = record.find(root, again) if again else record.create(root, keeping.name)
    machine = agent.hello()["machine"]
    devices = Local(fleet.num_workers, fleet.device)
    kind = devices.device_kind(machine)
    num_workers = devices.size(machine) if fleet.num_workers or kind != "cpu" else machine["num_cores"]
    smallest, largest = min(map(len, indices)), max(map(len, indices))
    each = f"clients of {smallest} to {largest} samples" if smallest < largest else f"clients of {smallest} samples"
    derived = (f"{size} {each}", *_normalised_by(prepared), *_how_adapters_are_averaged(job))
    task = checked(
        dataclasses.replace(prepared, num_steps=plan.convoy.rounds, derived=derived),
        Island(dp=num_workers, precision=plan.island.precision),
        num_workers,
        here,
        keeping,
        kind,
        batch=max(num_workers, job.global_batch),
    )
    task = dataclasses.replace(task, population=Population(plan.convoy, fleet, indices, held_out))
    body = record.pickled(("konvoi.simulate_clients:work", task))
    with stop_signals() as stop, here.alone(), Recording(here, task, keeping.sinks) as run:
        run.begin(f"{size} simulated clients on {num_workers} worker{'s' * (num_workers > 1)}, {kind}", machine)
        outcome = run_local(
            dataclasses.replace(devices, num_workers=num_workers),
            agent,
            body,
            num_workers=num_workers,
            emit=run.emit,
            should_stop=lambda: how_soon(stop),
            newest_step=lambda: here.newest_step() or 0,
        )[0]
        run.end(outcome)
    if outcome.reason == "stopped" and stop:
        raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
    return here

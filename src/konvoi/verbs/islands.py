"""train, where a plan has a convoy: each island of this computer, and who helps them, is a run beside the others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from konvoi.errors import PlanError
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import Local
from konvoi.fleet.local import run as run_local
from konvoi.job.job import Job, Prepared, prepare
from konvoi.observe.events import Event, StepDone
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.island import Island
from konvoi.plan.sync import leases
from konvoi.plan.sync.messages import Decision, Range
from konvoi.state import record
from konvoi.task import Membership, Outcome, Task
from konvoi.values import Source
from konvoi.verbs.running import Keeping, Recording, checked, how_soon, require_net, stop_signals

LOOK_S = 0.2


@dataclasses.dataclass
class OneIsland:
    """What the parent knows of an island, a server or a witness: its run, and how that went."""

    name: str
    task: Task
    agent: AgentHandle
    recording: Recording
    entry: str = "konvoi.loop:work"
    outcome: Outcome | None = None


def memberships(
    prepared: Prepared, plan: Convoy, names: Sequence[str], folder: Path, batch: int, was: tuple[int, Any] | None = None
) -> list[Membership]:
    """For the islands that a convoy begins with, and behind them those who help; each gets its identity, in a folder of
    its own. `was`: steps that were taken before, and what the checkpoint says of the data."""
    from konvoi.security.identity import Authority

    told = repr((prepared.describe(), plan.hash, names, was))
    run = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    authority = Authority.make(run)
    everybody, num_parts = (*names, *plan.helpers), len(plan.servers or names)
    for name in everybody:
        authority.issue(name).save(folder / name)
    voters = plan.voters(tuple(names))
    total = batch * len(names)
    lease = batch * plan.steps_per_round
    first = Decision.first(tuple(names), voters, lease)
    if was is not None:
        read = reading(was[1]) or leases.Reading((), was[0] * total)
        first = leases.begin_anew(read, tuple(names), voters, lease, was[0])
    return [Membership(name, plan, first, batch, total, num_parts, run, folder) for name in everybody]


def check(job: Job, prepared: Prepared, plan: Plan, fleet: Local) -> int:
    """The samples of an island's step. Raises: PlanError for what a convoy cannot do."""
    convoy, islands = plan.convoy, fleet.islands
    require_net("a convoy between processes")
    if islands < 2:
        raise PlanError("a convoy has several islands", found="islands=1", hint="kv.fleet.local(4, islands=2)")
    if convoy.updates == "gradients" and plan.island.num_workers > 1:
        found = f"updates=gradients, islands of {plan.island.num_workers} workers"
        raise PlanError("islands that agree on gradients have one worker each, so far", found=found)
    if job.patience is not None:
        raise PlanError(
            "islands cannot stop early, each by itself", found=f"patience={job.patience}", hint="leave it out"
        )
    if not isinstance(prepared.splits.train, Source):
        raise PlanError("islands lease positions of the data, and a stream has none")
    if job.global_batch % islands:
        raise PlanError(
            "the global batch is shared by all islands alike",
            found=f"{job.global_batch} samples for {islands} islands",
            hint=f"global_batch={-(-job.global_batch // islands) * islands}",
        )
    return job.global_batch // islands


def train_islands(
    job: Job, plan: Plan, fleet: Local, keeping: Keeping, preload: Sequence[str], agent: AgentHandle | None = None
) -> record.Record:
    """Train every island to its end, and return the first one's run, below which the others lie.

    One that dies comes back by itself, and fetches the agreed state from the others. One that fails for good stops
    them. A run that is resumed goes on from the newest checkpoint of any island, on all of them, another number too;
    the outer step's momentum, and what encodings have left out, begin anew. Raises: the first failure;
    KeyboardInterrupt or SystemExit after a stop that was asked for.
    """
    names = [f"island-{number}" for number in range(fleet.islands)]
    everybody = [*names, *plan.convoy.helpers]
    sites = [(fleet.sites or (None,))[number % max(1, len(fleet.sites))] for number in range(len(everybody))]
    with contextlib.ExitStack() as stack:
        agents = [agent] if agent is not None and not fleet.sites else []
        agents += [
            stack.enter_context(AgentHandle(preload, site.prefix if site else ())) for site in sites[len(agents) :]
        ]
        prepared = prepare(job)  # while the agents load torch
        batch = check(job, prepared, plan, fleet)
        plan.convoy.voters(tuple(names))
        machine = agents[0].hello()["machine"]
        num_workers, kind = fleet.size(machine), fleet.device_kind(machine)
        if kind != "cpu":
            raise PlanError("a convoy's islands train on CPUs so far", found=kind, hint='kv.fleet.local(device="cpu")')
        each = plan.island.num_workers
        if num_workers != each * fleet.islands:
            raise PlanError(
                "the workers are divided by the islands, and each has as many as its plan",
                found=f"{num_workers} workers for {fleet.islands} islands of {each}",
                hint=f"kv.fleet.local({each * fleet.islands}, islands={fleet.islands})",
            )
        root, again = keeping.root, keeping.resume
        here = record.find(root, again) if again else record.create(root, keeping.name)
        folders = [here.folder, *(here.folder / "islands" / name for name in everybody[1:])]
        stack.enter_context(here.alone())
        stop = stack.enter_context(stop_signals())
        convoy = (here.folder / "convoy").resolve()
        shutil.rmtree(convoy, ignore_errors=True)  # of the run that is gone on with
        before = set_aside(job, here, convoy / "start") if again else None
        was = (before[0], json.loads((before[1] / "facts.json").read_text()).get("convoy")) if before else None
        given = memberships(prepared, plan.convoy, names, convoy, batch, was)
        islands, new = [], dataclasses.replace(keeping, resume=False)
        for name, site, agent, folder, membership in zip(everybody, sites, agents, folders, given, strict=True):
            if site:
                membership = dataclasses.replace(membership, address=site.address)
            is_helper = name in plan.convoy.helpers
            inside, size = (Island(precision=plan.island.precision), 1) if is_helper else (plan.island, each)
            task = checked(prepared, inside, size, record.Record(folder), new, kind, batch=batch)
            lines = (*task.derived, *plan.convoy.derived(membership.batch, prepared.num_steps))
            task = dataclasses.replace(
                task, membership=membership, derived=lines, resume=before is not None, restore_from=before
            )
            sinks = keeping.sinks if name == names[0] else ()
            recording = stack.enter_context(Recording(record.Record(folder), task, sinks))
            where = f"at {site.address}" if site else f"on {kind}"
            recording.begin(f"local: {name} of {len(everybody)}, {where}", machine)
            entry = "konvoi.server:work" if is_helper else OneIsland.entry
            islands.append(OneIsland(name, task, agent, recording, entry))
        run_all(islands, fleet, lambda: how_soon(stop))
    if stop and any(one.outcome is not None and one.outcome.reason == "stopped" for one in islands):
        raise KeyboardInterrupt if stop[0] == signal.SIGINT else SystemExit(128 + stop[0])
    return here


def set_aside(job: Job, here: record.Record, folder: Path) -> tuple[int, Path] | None:
    """The newest checkpoint of any island, which is checked, its step, and a copy that stays while its own run goes on:
    files are only linked."""
    from konvoi.trained import check_resumable  # loads torch

    each = [record.Record(one) for one in (here.folder, *(here.folder / "islands").glob("*"))]
    newest = max(each, key=lambda one: one.newest_step() or -1)
    if newest.newest_step() is None:
        return None
    check_resumable(job, newest)
    step, path = record.whole_checkpoints(newest.checkpoints)[-1]
    return step, Path(shutil.copytree(path, folder / path.name, copy_function=_link))


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # a file system without links
        shutil.copy2(source, to)


def reading(facts: Mapping[str, Any] | None) -> leases.Reading | None:
    """As a checkpoint's JSON has it; None where it is not of a convoy."""
    if facts is None:
        return None
    held = tuple((name, _ranges(ranges)) for name, ranges in facts["leases"])
    return leases.Reading(held, int(facts["cursor"]), _ranges(facts["returned"]))


def _ranges(pairs: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    return tuple((int(start), int(stop)) for start, stop in pairs)


def run_all(islands: Sequence[OneIsland], fleet: Local, should_stop: Callable[[], int]) -> None:
    """Each in a thread, which waits for its workers. Raises: the first failure."""
    has_failed, failures = threading.Event(), list[BaseException]()
    alone = dataclasses.replace(fleet, num_workers=None, islands=1)
    cores = int(islands[0].agent.hello()["machine"]["num_cores"])

    def emit(one: OneIsland, event: Event) -> None:
        one.recording.emit(event)
        if fleet.on_step is not None and isinstance(event, StepDone):
            fleet.on_step(one.name, event.step)

    def work(one: OneIsland) -> None:
        try:
            one.outcome = run_local(
                alone,
                one.agent,
                record.pickled((one.entry, one.task)),
                num_workers=one.task.plan.num_workers,
                emit=functools.partial(emit, one),
                should_stop=lambda: max(should_stop(), int(has_failed.is_set())),
                newest_step=lambda: max(
                    record.Record(one.task.folder).newest_step() or 0, (one.task.restore_from or (0,))[0]
                ),
                num_cores=1 if fleet.sites else max(1, cores // len(islands)),
            )[0]
            one.recording.end(one.outcome)
        except BaseException as error:
            failures.append(error)
            has_failed.set()

    threads = [threading.Thread(target=work, args=(one,), name=f"konvoi-{one.name}", daemon=True) for one in islands]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(LOOK_S)  # a signal is heard in between
    if failures:
        raise failures[0]  # the others' may be its consequences

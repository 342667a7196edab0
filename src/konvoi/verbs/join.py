"""join: for a program that keeps its own loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from konvoi.errors import PlanError
from konvoi.fleet import torchrun
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.island import Island

if TYPE_CHECKING:
    from konvoi.own_loop import OwnLoop


@contextlib.contextmanager
def join(plan: Island | Convoy | Plan | None = None) -> Iterator[OwnLoop]:
    """Join the island of this launch: torchrun's workers, or this process alone.

    Without a plan the workers are data parallel. With a convoy (`kv.Island() | kv.diloco(every=50)`) torchrun's workers
    are several islands, each as large as the plan's; `step` then agrees with the others where it is time. Each global
    batch is shared by all of them.

    Raises: PlanError where plan and launch differ in size.
    """
    from konvoi import devices
    from konvoi.fleet.worker import Place
    from konvoi.island import enter
    from konvoi.own_loop import OwnLoop

    kind = devices.kind()
    if isinstance(plan, (Convoy, Plan)):
        with _of_several(Island() | plan if isinstance(plan, Convoy) else plan, kind) as loop:
            yield loop
        return
    if not torchrun.is_here():
        plan = plan or Island()
        if plan.num_workers > 1:
            raise PlanError(
                "this plan needs several workers, and this process was started alone",
                found=f"{plan.num_workers} workers",
                hint=f"torchrun --nproc-per-node {plan.num_workers} PROGRAM",
            )
        with enter(Place(0, 1, device_kind=kind), plan) as island:
            yield OwnLoop(island)
        return
    plan = plan or Island(dp=torchrun.num_workers())
    plan.check_workers(torchrun.num_workers())
    with torchrun.place(kind, devices.num_cores(), lambda event: None) as place, enter(place, plan) as island:
        yield OwnLoop(island)


@contextlib.contextmanager
def _of_several(plan: Plan, kind: str) -> Iterator[OwnLoop]:
    from konvoi import devices
    from konvoi.island import enter
    from konvoi.own_loop import OwnLoop
    from konvoi.verbs.running import require_net

    require_net("a convoy between processes")
    from konvoi.company import Company

    each = plan.island.num_workers
    workers = torchrun.num_workers() if torchrun.is_here() else 1
    if workers < 2 * each or workers % each:
        raise PlanError(
            "a convoy has several islands, and all of a launch's workers are in one of them",
            found=f"{workers} workers, {each} an island",
            hint=f"torchrun --nproc-per-node {2 * each} PROGRAM",
        )
    if kind != devices.CPU:
        raise PlanError("a convoy's islands train on CPUs so far", found=kind)
    if found := plan.convoy.what_only_train_can:
        raise PlanError("islands of own loops agree by themselves, and on moves, so far", found=found)
    with torchrun.place(kind, devices.num_cores(), lambda event: None) as place:
        company = Company(plan, place, torchrun.master())
        with enter(company.place, plan.island) as island, company:
            yield OwnLoop(island, company)

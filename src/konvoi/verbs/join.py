"""join: for a program that keeps its own loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from konvoi.errors import PlanError
from konvoi.fleet import torchrun
from konvoi.plan.island import Island

if TYPE_CHECKING:
    from konvoi.own_loop import OwnLoop


@contextlib.contextmanager
def join(plan: Island | None = None) -> Iterator[OwnLoop]:
    """Join the island of this launch: torchrun's workers, or this process alone.

    Without a plan the workers are data parallel.

    Raises: PlanError where plan and launch differ in size.
    """
    from konvoi import devices
    from konvoi.fleet.worker import Place
    from konvoi.island import enter
    from konvoi.own_loop import OwnLoop

    kind = devices.kind()
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

"""What the model itself says to a plan, looked at on `meta` before a worker starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from konvoi import devices
from konvoi.plan.island import Island
from konvoi.plan.split.estimate import check_fits
from konvoi.values import Objective


def check(
    model: Any, objective: Objective, example: Any, plan: Island, device_kind: str, num_local_workers: int | None = None
) -> tuple[str, ...]:
    """What was derived, as a person reads it. `model` is a module, or a callable that makes one; `example` a batch;
    `num_local_workers` how many will share this host's memory, where they are all on this one.

    Raises: PlanError.
    """
    module = on_meta(model)
    if num_local_workers is not None and device_kind == devices.CPU:  # an accelerator's is asked for by its workers
        free = devices.free_memory(torch.device(device_kind), num_local_workers)
        if free is not None and module is not model:
            check_fits(module, plan, free)
    derived: list[str] = []
    if plan.pp > 1:
        from konvoi.plan.split import stages

        stages.cut_up(module, 0, plan.pp, plan.schedule, objective, example)
    if plan.tp > 1:
        from konvoi.plan.split import tensor_plan

        derived.append(tensor_plan.check(module, plan.tp, device_kind))
    return tuple(derived)


def on_meta(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    with torch.device("meta"):
        module: nn.Module = model()
    return module

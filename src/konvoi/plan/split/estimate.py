"""Whether a model can fit, before memory is taken for it: a first estimate, which errs on the side of trying."""

from __future__ import annotations

import math

from torch import nn

from konvoi.errors import PlanError
from konvoi.plan.island import Island
from konvoi.units import format_bytes


def least_bytes(module: nn.Module) -> int:
    """What every plan's workers hold together of it: parameters, and gradients of those that are trained. Optimizers,
    activations and what is held twice come on top (docs/memory.md)."""
    return sum(
        parameter.numel() * parameter.element_size() * (2 if parameter.requires_grad else 1)
        for parameter in module.parameters()
    )


def check_fits(module: nn.Module, plan: Island, available: int) -> None:
    """`available`: bytes that one worker may take. Raises: PlanError where even the least does not fit."""
    total, splits = least_bytes(module), plan.fsdp * plan.tp * plan.pp
    if total <= splits * available:
        return
    numbers = sum(parameter.numel() for parameter in module.parameters())
    raise PlanError(
        "this model does not fit in memory under this plan",
        found=f"{numbers:,} parameters: at least {format_bytes(total / splits)} a worker, and the optimizer's state",
        expected=f"at most {format_bytes(available)}",
        hint=f"split it over {math.ceil(total / available)} workers or more: fsdp=n, tp=n, pp=n, or a product of them",
    )

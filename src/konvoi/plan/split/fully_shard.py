"""fsdp: parameters, gradients and optimizer state are sharded, by torch's FSDP2; with dp as HSDP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.fsdp import fully_shard as torch_fully_shard

from konvoi.errors import PlanError
from konvoi.plan.split.materialize import materialize
from konvoi.plan.split.parts import Parts, Tie, find_ties, run_micro_batches


def shard_unit(
    module: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None, *, zero: int = 3, offload: bool = False
) -> None:
    """Shard one unit's parameters over the mesh's last axis; they are gathered for its forward and backward pass, or
    once for both."""
    policy = (
        MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        if compute_dtype
        else MixedPrecisionPolicy()
    )
    torch_fully_shard(
        module,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=None if zero == 3 else False,  # None: but for the root, which is needed again at once
        offload_policy=CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy(),
    )


def check_ties(ties: Sequence[Tie], units: Sequence[str]) -> None:
    """Every use of a tied parameter must lie in one unit. Raises: PlanError."""

    def unit_of(name: str) -> str:
        return next((unit for unit in units if name.startswith(f"{unit}.")), "")

    for tie in ties:
        places = {unit_of(name) for name in (tie.owner, *tie.aliases)}
        if len(places) > 1:
            raise PlanError(
                "fsdp cannot shard a tied parameter whose uses lie in different blocks",
                found=f"{tie.owner} = {', '.join(tie.aliases)}",
                hint="dp holds the model whole",
            )


def shard(
    module: nn.Module,
    root: nn.Module,
    blocks: Sequence[tuple[str, nn.Module]],
    shard_one: Callable[[nn.Module], None],
    *,
    seed: int,
    device: torch.device,
    cut: Callable[[str, nn.Module], None],
) -> None:
    """Fill in a model and `shard_one` unit after the other: each block, then `root`, which is the module or wraps it.

    Raises: PlanError for a tie across units.
    """
    check_ties(find_ties(module), [name for name, _ in blocks])

    def shard_unit_or_root(unit: nn.Module) -> None:
        shard_one(root if unit is module else unit)

    materialize(module, seed, device, [*blocks, ("", module)], shard_unit_or_root, cut)
    for child in root.modules():
        if isinstance(child, FSDPModule):
            # The loop divides once, by the global weight; FSDP2 would divide by the number of workers too.
            child.set_gradient_divide_factor(1.0)
            child.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum


def sharded(
    parts: Parts, roots: Sequence[nn.Module], mesh: DeviceMesh, data_group: dist.ProcessGroup | None, *, zero: int = 3
) -> Parts:
    """Sum instead of mean, over all workers that read different data, with one norm over all shards.

    Under ZeRO 1 gradients are kept whole until the step's last backward pass; else each pass's are sharded at once.
    """
    works: list[Any] = []

    def add_up(row: Tensor) -> None:
        works.append(dist.all_reduce(row, group=data_group, async_op=True))

    def finish() -> None:
        while works:
            works.pop().wait()

    units = [child for root in roots for child in root.modules() if isinstance(child, FSDPModule)]

    def refresh() -> None:
        for unit in units:  # some stay gathered behind a forward pass alone, and would not be gathered anew
            unit.reshard()
        parts.refresh()

    groups = (*parts.norm_groups, mesh.get_group("fsdp"))
    common = replace(parts, add_up=add_up, finish=finish, refresh=refresh, norm_groups=groups)
    if parts.is_pipeline:
        return common  # torch's pipelining reduces when it is empty
    (module,) = parts.modules
    assert isinstance(module, FSDPModule)

    def is_last_backward(flag: bool) -> None:
        if zero == 1:
            module.set_requires_gradient_sync(flag)
        module.set_requires_all_reduce(flag)  # between the groups of HSDP
        module.set_is_last_backward(flag)

    def begin() -> None:
        parts.begin()
        is_last_backward(False)

    return replace(
        common,
        begin=begin,
        forward_backward=partial(
            run_micro_batches, module, parts.objective, before_last=lambda: is_last_backward(True)
        ),
    )

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
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp import fully_shard as torch_fully_shard

from konvoi.errors import PlanError
from konvoi.plan.split.materialize import materialize
from konvoi.plan.split.parts import Parts, Tie, find_ties, run_micro_batches


def shard_unit(module: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None) -> None:
    """Shard one unit's parameters over the mesh's last axis; they are gathered for its forward and backward pass."""
    policy = (
        MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        if compute_dtype
        else MixedPrecisionPolicy()
    )
    torch_fully_shard(module, mesh=mesh, mp_policy=policy)


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
    mesh: DeviceMesh,
    compute_dtype: torch.dtype | None,
    *,
    seed: int,
    device: torch.device,
    cut: Callable[[str, nn.Module], None],
) -> None:
    """Fill in and shard a model unit by unit: each block, then `root`, which is the module or wraps it, with the rest.

    Raises: PlanError for a tie across units.
    """
    check_ties(find_ties(module), [name for name, _ in blocks])

    def shard_one(unit: nn.Module) -> None:
        shard_unit(root if unit is module else unit, mesh, compute_dtype)

    materialize(module, seed, device, [*blocks, ("", module)], shard_one, cut)
    for child in root.modules():
        if isinstance(child, FSDPModule):
            # The loop divides once, by the global weight; FSDP2 would divide by the number of workers too.
            child.set_gradient_divide_factor(1.0)
            child.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum


def sharded(parts: Parts, mesh: DeviceMesh, data_group: dist.ProcessGroup | None) -> Parts:
    """Sum instead of mean, over all workers that read different data, with one norm over all shards."""
    works: list[Any] = []

    def add_up(row: Tensor) -> None:
        works.append(dist.all_reduce(row, group=data_group, async_op=True))

    def finish() -> None:
        while works:
            works.pop().wait()

    common = replace(parts, add_up=add_up, finish=finish, norm_groups=(*parts.norm_groups, mesh.get_group("fsdp")))
    if parts.is_pipeline:
        return common  # torch's pipelining reduces when it is empty
    (module,) = parts.modules
    assert isinstance(module, FSDPModule)

    def synchronize_gradients(flag: bool) -> None:
        module.set_requires_gradient_sync(flag)
        module.set_is_last_backward(flag)

    def begin() -> None:
        parts.begin()
        synchronize_gradients(False)

    return replace(
        common,
        begin=begin,
        forward_backward=partial(
            run_micro_batches, module, parts.objective, before_last=lambda: synchronize_gradients(True)
        ),
    )

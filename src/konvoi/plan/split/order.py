"""How a model becomes the `Parts` of one worker: every split that a plan asks for, in the one order.

Pipeline, recomputing and compiling, tensors, then sharding or replicating. A split loads what it needs of torch where
it is asked for: DTensor takes as long as half of torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from konvoi.errors import JobError
from konvoi.plan.island import Island
from konvoi.plan.precision import Precision
from konvoi.plan.split import blocks
from konvoi.plan.split.estimate import check_fits
from konvoi.plan.split.materialize import build, materialize
from konvoi.plan.split.parts import Parts, single
from konvoi.plan.split.replicate import replicate
from konvoi.values import Objective, base_name


@dataclass(frozen=True)
class Here:
    """One worker's place in the plan."""

    plan: Island
    precision: Precision
    device: torch.device
    mesh: DeviceMesh | None  # None: one worker
    data_group: dist.ProcessGroup | None  # workers that read the other parts of the batch; None: all
    free_memory: int | None = None  # bytes that this worker may take, where that is known


def split(
    model: Any, objective: Objective, here: Here, *, seed: int, freeze: Sequence[str] = (), example: Any = None
) -> Parts:
    """`example`: a batch, by which a pipeline finds out how the model's parts follow each other.

    Raises: JobError, PlanError for what does not fit together.
    """
    plan, mesh = here.plan, here.mesh
    module = build(model, seed, here.device, here.precision.parameters)
    _freeze(module, freeze)
    if here.free_memory is not None and all(parameter.is_meta for parameter in module.parameters()):
        check_fits(module, plan, here.free_memory)
    if mesh is None:
        _settle(module, module, blocks.find_blocks(module), {}, here, seed)
        return single(module, objective)
    tensors: Mapping[str, str] = {}
    if plan.tp > 1:
        from konvoi.plan.split import tensor, tensor_plan

        tensors = tensor_plan.plan_of(module)
        objective = tensor.on_workers(objective)
    roots: list[nn.Module] = [module]  # what wraps the parts' modules, or is one
    if plan.pp == 1:
        _settle(module, module, blocks.find_blocks(module), tensors, here, seed)
        parts = single(module, objective)
    else:
        from konvoi.plan.split import pipeline, stages  # loads torch's pipelining

        mine, tied = stages.cut_up(module, mesh.get_local_rank("pp"), plan.pp, plan.schedule, objective, example)
        for stage in mine:
            if plan.tp > 1:
                stage.pack, stage.unpack = tensor.packed, partial(tensor.seen_whole, mesh=mesh["tp"])
            own = [(name, stage.module.get_submodule(name)) for name in stage.blocks]
            _settle(stage.module, stage, own, tensors, here, seed)
        roots = [*mine]
        parts = pipeline.pipelined(mine, tied, objective, mesh, plan.schedule)
    if plan.fsdp > 1:
        from konvoi.plan.split import fully_shard

        parts = fully_shard.sharded(parts, roots, mesh, here.data_group, zero=plan.zero)
    elif plan.dp > 1:
        parts = replicate(parts, mesh.get_group("dp"))
    if plan.tp > 1:
        parts = tensor.tensor_parallel(parts, mesh["tp"])
    if plan.pp > 1:
        parts = pipeline.shared_by_all_stages(parts, mesh.get_group("pp"))
    return parts


def _settle(
    module: nn.Module,
    root: nn.Module,
    units: Sequence[tuple[str, nn.Module]],
    tensors: Mapping[str, str],
    here: Here,
    seed: int,
) -> None:
    """Recompute, compile, fill in, cut and shard what this worker holds. `root` is the module, or wraps it."""
    plan, mesh = here.plan, here.mesh
    repeated = [block for _, block in units]
    if plan.checkpoint_activations and plan.tp == 1:
        blocks.recompute(repeated)
    if plan.compile:
        blocks.compile_blocks(repeated or [module])
    cut = _leave_whole
    if plan.tp > 1:
        from konvoi.plan.split import tensor
        from konvoi.plan.split.local_attention import LocalAttention

        assert mesh is not None
        if plan.checkpoint_activations:  # around what is compiled: torch cannot recompute tp's collectives inside
            blocks.recompute(repeated, partial(LocalAttention, mesh["tp"]))
        cut = tensor.Cutter(module, tensors, mesh["tp"], sequence_parallel=plan.sequence_parallel).cut
        tensor.cut_output(module)
    if plan.fsdp == 1:
        materialize(module, seed, here.device, [("", module)], lambda unit: None, cut)
        return
    from konvoi.plan.split import fully_shard

    assert mesh is not None
    shards = mesh["dp", "fsdp"] if plan.dp > 1 else mesh["fsdp"]
    shard_one = partial(
        fully_shard.shard_unit,
        mesh=shards,
        compute_dtype=here.precision.compute,
        zero=plan.zero,
        offload=plan.offload,
    )
    fully_shard.shard(module, root, units, shard_one, seed=seed, device=here.device, cut=cut)


def _leave_whole(name: str, module: nn.Module) -> None:
    """Where tp cuts nothing."""


def _freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    names = dict(module.named_parameters())
    for pattern in patterns:
        found = [name for name in names if any(fnmatch.fnmatch(one, pattern) for one in (name, base_name(name)))]
        if not found:
            raise JobError("freeze names no parameter", found=pattern, expected=f"e.g. {next(iter(names), '')}")
        for name in found:
            names[name].requires_grad_(False)

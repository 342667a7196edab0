"""tp: the matrices of each block are cut over workers that read the same batch (Megatron-LM, arXiv 1909.08053
section 3), by torch's DTensor.

Every parameter becomes a DTensor: cut where the model's plan says so, whole on each worker elsewhere. The model's own
code then runs as it is, on tensors that know their whole shape, so that a poor plan costs time and memory and never a
digit. Two things are taken off DTensor, as each worker can do its share alone: attention, by the device's own kernel
over the worker's heads, and the loss over the worker's part of the vocabulary (job/vocabulary_parallel.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._pytree import tree_map

from konvoi.plan.split.local_attention import LocalAttention
from konvoi.plan.split.parts import Parts, gradients_of
from konvoi.plan.split.tensor_plan import is_transposed, style_of, styles
from konvoi.values import MicroBatch, base_name, is_adapter, takes_vocabulary_shards

# Where a parameter is cut, by the style of its module: (matrix, vector); a vector is a bias.
CUTS: dict[str, tuple[Placement, Placement]] = {
    "colwise": (Shard(0), Shard(0)),
    "rowwise": (Shard(1), Replicate()),
    "embedding_rowwise": (Shard(0), Replicate()),
    "embedding_colwise": (Shard(1), Replicate()),
    "packed_colwise": (Shard(0), Shard(0)),  # of matrices that stand one above the other: cut where none of them ends
    "replicate": (Replicate(), Replicate()),
    "local": (Replicate(), Replicate()),
    "local_partial": (Replicate(), Replicate()),
}


class Cutter:
    """Cuts a model module by module. `residual` is how the state between blocks lies on the workers: whole, or with
    sequence parallelism (arXiv 2205.05198 section 4.2.2) cut along the sequence."""

    def __init__(self, root: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
        self.mesh, self.plan, self.styles = mesh, plan, styles(root, plan, mesh.size())
        self.residual: Placement = Shard(1) if sequence_parallel else Replicate()

    def cut(self, name: str, module: nn.Module) -> None:
        """Make this module's own parameters DTensors, and see to it that what goes in and out lies as it should."""
        if not any(True for _ in module.parameters(recurse=False)):
            self._gather_once(name, module)
            return
        style = self.styles[name]
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            placement = self._placement(f"{name}.{leaf}", style, module, parameter)
            whole = parameter.detach()
            # Every worker has drawn the whole of it alike, so each keeps its own part, and nothing is sent.
            part = distribute_tensor(whole, self.mesh, [placement], src_data_rank=None)
            module.register_parameter(leaf, nn.Parameter(_own_memory(part), parameter.requires_grad))
        if "colwise" in style and not style.startswith("embedding"):
            module.register_forward_pre_hook(_gather_inputs)
        if style.startswith("local"):
            run_locally(module, self.mesh, is_partial=style == "local_partial")
        if style == "packed_colwise":
            module.register_forward_hook(partial(_lay_out, placement=Replicate()))
        if style in ("rowwise", "embedding_rowwise", "embedding_colwise"):
            module.register_forward_hook(partial(_lay_out, placement=self.residual))

    def _placement(self, name: str, style: str, module: nn.Module, parameter: nn.Parameter) -> Placement:
        own = style_of(name, self.plan)  # that of experts, which stand in one parameter (experts, out, in)
        if parameter.ndim == 3 and own == "packed_colwise":
            return _StridedShard(1, split_factor=2)  # of each of two matrices that stand one above the other, a part
        if parameter.ndim == 3:
            return {"colwise": Shard(1), "rowwise": Shard(2)}.get(own, Replicate())
        placement = CUTS[style][0 if parameter.ndim > 1 else 1]
        if is_transposed(module) and parameter.ndim > 1 and isinstance(placement, Shard):
            return Shard(1 - placement.dim)
        return placement

    def _gather_once(self, name: str, module: nn.Module) -> None:
        """With sequence parallelism, what several matrices read is gathered once, where they all stand in one module
        with nothing beside them."""
        below = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
        are_matrices = all(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in below)
        styles = {base_name(one): style for one, style in self.styles.items() if not is_adapter(one)}
        reads = any(styles.get(f"{name}.{child}") == "colwise" for child, _ in module.named_children())
        if isinstance(self.residual, Shard) and reads and are_matrices:
            module.register_forward_pre_hook(_gather_inputs)


def _own_memory(part: Tensor) -> Tensor:
    """A cut along a later dim is a view of the whole, which would stay in memory behind it."""
    assert isinstance(part, DTensor)
    inner = part.to_local()
    return DTensor.from_local(
        inner.clone(), part.device_mesh, part.placements, run_check=False, shape=part.shape, stride=part.stride()
    )


def _gather_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_lay_out_one(arg, Replicate()) for arg in args)


def _lay_out(_: nn.Module, args: Any, output: Any, placement: Placement) -> Any:
    return _lay_out_one(output, placement)


def _lay_out_one(value: Any, placement: Placement) -> Any:
    if not isinstance(value, DTensor) or value.placements == (placement,):
        return value
    if isinstance(placement, Shard) and value.ndim < 3:
        placement = Replicate()  # nothing that has a sequence
    found = value.redistribute(placements=[placement])
    # Once more, so that a gradient that is a sum is added up here: it cannot go back through an embedding's part.
    return found.redistribute(placements=[placement]) if isinstance(placement, Replicate) else found


def run_locally(module: nn.Module, mesh: DeviceMesh, *, is_partial: bool) -> None:
    """Run a module on plain tensors, with operators that DTensor does not know. Each worker computes the same; or with
    parts of its parameters that give summands of the result, `is_partial`."""
    original = module.forward
    gradients = [Partial() if is_partial else Replicate()]

    def own(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        return value.redistribute(placements=[Replicate()]).to_local(grad_placements=gradients)

    def shared(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        found = DTensor.from_local(value, mesh, gradients, run_check=False)
        return found.redistribute(placements=[Replicate()])

    def forward(*args: Any, **kwargs: Any) -> Any:
        parameters = dict(module._parameters)
        try:
            for leaf, parameter in parameters.items():
                module._parameters[leaf] = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            return tree_map(shared, original(*tree_map(own, args), **tree_map(own, kwargs)))
        finally:
            module._parameters.update(parameters)

    module.forward = forward


def whole(value: Any) -> Any:
    """Every DTensor in it as a plain tensor that each worker holds whole; gradients flow through."""
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, value)


def packed(state: Tensor) -> Tensor:
    """What a pipeline sends: whole, and no view, as its schedules detach in place."""
    found: Tensor = whole(state)
    return found.clone()


def seen_whole(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """A plain tensor that each worker holds whole, as a DTensor."""
    return DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)


@contextlib.contextmanager
def _global_view(mesh: DeviceMesh) -> Iterator[None]:
    """Plain tensors that meet a DTensor are what every worker holds alike: masks, positions, tables."""
    with implicit_replication(), LocalAttention(mesh):
        yield


# -- a step ---------------------------------------------------------------------------------------------------------


def cut_output(module: nn.Module) -> None:
    """Whoever calls the model gets a plain tensor, or the logits' part of an objective that asks for it."""

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return output if takes_vocabulary_shards.get() else whole(output)

    module.register_forward_hook(after)


def tensor_parallel(parts: Parts, mesh: DeviceMesh) -> Parts:
    """Run a step in the global view; every worker of the axis comes to the same loss, and to its part of gradients."""
    group = mesh.get_group()
    first = dist.get_rank(group) == 0
    trained = [parameter for _, parameter in parts.named_parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.register_hook(partial(_as_laid_out, placements=_placements(parameter)))
    counted = [parameter for parameter in trained if first or not _is_repeated(parameter)]

    def forward_backward(micro: Sequence[MicroBatch], scale: float, announce: Callable[[Tensor], None]) -> None:
        with _global_view(mesh):
            parts.forward_backward(micro, scale, announce)

    def run(function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        with _global_view(mesh):
            return whole(parts.run(function, batch))

    def add_up(row: Tensor) -> None:
        dist.all_reduce(row[2:], group=group)  # all but the wish to stop is the same on all
        parts.add_up(row)

    return replace(
        parts,
        forward_backward=forward_backward,
        run=run,
        add_up=add_up,
        counted=partial(gradients_of, counted),
        norm_groups=(*parts.norm_groups, group),
    )


def on_workers(objective: Any) -> Any:
    """The objective, with what it returns as plain tensors."""
    return _OnWorkers(objective)


class _OnWorkers:
    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        return whole(self.objective(model, batch))


def _placements(parameter: nn.Parameter) -> tuple[Placement, ...]:
    assert isinstance(parameter, DTensor)
    return parameter.placements


def _as_laid_out(gradient: Tensor, placements: tuple[Placement, ...]) -> Tensor:
    """A gradient that each worker has a summand of is added up before it is kept."""
    assert isinstance(gradient, DTensor)
    return gradient if gradient.placements == placements else gradient.redistribute(placements=placements)


def _is_repeated(parameter: nn.Parameter) -> bool:
    assert isinstance(parameter, DTensor)
    return isinstance(parameter.placements[-1], Replicate)  # tp is the innermost axis

"""A live island, as one of its workers sees it: process group, mesh, the split model, and one exact step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from konvoi import devices
from konvoi.fleet.worker import Place
from konvoi.plan.island import AXES, Island
from konvoi.plan.precision import LossScale, precision
from konvoi.plan.split import order
from konvoi.plan.split.parts import Parts
from konvoi.values import MicroBatch, Objective

T = TypeVar("T")


@dataclass
class Gradient:
    """The sum of a step's gradients, until it is applied. `factor` turns it into the mean that the optimizer wants."""

    loss: float
    weight: float
    should_stop: bool
    wait_s: float
    factor: float
    own_is_finite: bool = True  # this worker's share of the loss
    scale: float = 1.0  # that the loss carried
    norm: float = math.nan  # of the mean gradient, before clipping


class LiveIsland:
    """Made by `enter`. Every worker calls the same methods in the same order."""

    def __init__(self, place: Place, plan: Island, device: torch.device, mesh: DeviceMesh | None) -> None:
        self.place, self.plan, self.device, self.mesh = place, plan, device, mesh
        # Which of the batch's parts is this worker's: those of one pipeline read the same.
        self.part = place.worker // plan.tp % plan.num_parts  # pp is the mesh's outermost axis, tp the innermost
        self.data_group: dist.ProcessGroup | None = None  # workers that read the other parts; None: all
        if mesh is not None and plan.pp * plan.tp > 1:
            self.data_group = mesh["dp", "fsdp"]._flatten("data").get_group()
        self.precision = precision(plan.precision)
        self.scale: LossScale | None = None  # set at the first step, or by a checkpoint

    # -- the model ----------------------------------------------------------------------------------------------

    def split(
        self, model: Any, objective: Objective, *, seed: int, freeze: Sequence[str] = (), example: Any = None
    ) -> Parts:
        """Build the model, and what this worker holds of it. `example`, a batch, tells a pipeline how its parts follow
        each other."""
        free = devices.free_memory(self.device, self.place.num_local_workers)  # as if all took as much
        here = order.Here(self.plan, self.precision, self.device, self.mesh, self.data_group, free)
        return order.split(model, objective, here, seed=seed, freeze=freeze, example=example)

    # -- a step -------------------------------------------------------------------------------------------------

    def forward_backward(self, parts: Parts, micro: Sequence[MicroBatch], *, should_stop: bool = False) -> Gradient:
        """Add up the gradients of the global batch. Nothing is divided until `mean`."""
        scale = self.scale = self.scale or self._suited_scale(micro)
        announced: list[Tensor] = []

        def announce(sums: Tensor) -> None:
            row = torch.cat([sums, sums.new_tensor([float(should_stop)])])
            announced.extend((sums, row))
            parts.add_up(row)

        parts.begin()
        with self.computing():
            parts.forward_backward(micro, scale.value, announce)
        begin = time.perf_counter()
        parts.finish()
        wait_s = time.perf_counter() - begin
        sums, row = announced
        loss_sum, weight, stop = row.tolist()
        factor = 1.0 / (scale.value * weight) if weight > 0 else 0.0
        loss = loss_sum / weight if weight > 0 else 0.0 * loss_sum
        own_is_finite = math.isfinite(loss) or bool(sums.isfinite().all())
        return Gradient(loss, weight, stop > 0, wait_s, factor, own_is_finite, scale.value)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """In the plan's precision; FSDP2 sees to it itself."""
        return self.precision.autocast(self.device) if self.plan.fsdp == 1 else contextlib.nullcontext()

    def clip(self, parts: Parts, gradient: Gradient, max_norm: float | None) -> None:
        """Turn the sums into the mean gradient, no longer than `max_norm` over the whole model."""
        gradient.norm = parts.grad_norm().item() * gradient.factor
        if max_norm is not None and gradient.norm > max_norm:
            gradient.factor *= max_norm / (gradient.norm + 1e-6)  # 1e-6: as torch.nn.utils.clip_grad_norm_
        if math.isfinite(gradient.norm):
            torch._foreach_mul_(parts.gradients(), gradient.factor)

    def is_finite(self, gradient: Gradient) -> bool:
        """Whether the step may be taken: the same answer on every worker, as loss and norm are over all of them."""
        return math.isfinite(gradient.norm) and math.isfinite(gradient.loss)

    def after_step(self, is_finite: bool) -> None:
        if self.scale is not None:
            self.scale = self.scale.after(is_finite)

    @property
    def scale_is_dynamic(self) -> bool:
        """Whether a gradient that is not finite only means that the loss scale was too large."""
        return self.plan.precision == "fp16"

    def sums(self, parts: Parts, items: Iterator[MicroBatch], measure: Any) -> dict[str, float]:
        """`measure(module, batch) -> {name: sum}` added up over all batches and workers, without gradients."""
        total: dict[str, Tensor] = {}
        for module in parts.modules:
            module.eval()
        with torch.no_grad(), self.computing():
            for item in items:
                for name, value in (parts.run(measure, item.batch) or {}).items():
                    value = value.detach().double() if value.device.type == "cpu" else value.detach().float()
                    total[name] = total.get(name, 0.0) + (value if item.counts else value * 0.0)
        for module in parts.modules:
            module.train()
        found: dict[str, float] = {}
        if total:
            row = torch.stack(list(total.values()))
            if self.mesh is not None:
                dist.all_reduce(row, group=self.data_group)
            found = dict(zip(total, row.tolist(), strict=True))
        return self.tell_all_stages(found)

    def tell_all_stages(self, value: T) -> T:
        """What the worker with a pipeline's last stage has; the value itself where there is no pipeline."""
        if self.plan.pp == 1:
            return value
        assert self.mesh is not None
        told = [value]
        last = 0 if self.plan.schedule == "zbv" else self.plan.pp - 1
        dist.broadcast_object_list(told, group=self.mesh.get_group("pp"), group_src=last)
        return told[0]

    def of_all_stages(self, own: Mapping[str, T]) -> dict[str, T]:
        """What the stages of a pipeline hold by name, together. Slow; for set-up."""
        if self.plan.pp == 1:
            return dict(own)
        assert self.mesh is not None
        found: list[Any] = [None] * self.plan.pp
        dist.all_gather_object(found, dict(own), group=self.mesh.get_group("pp"))
        return {name: value for one in found for name, value in one.items()}

    def to_device(self, micro: MicroBatch) -> MicroBatch:
        """On this worker's device; floating-point inputs in float64 where everything is."""
        dtype = torch.float64 if self.plan.precision == "fp64" else None
        if self.device.type == devices.CPU and dtype is None:
            return micro
        return replace(micro, batch=_moved(micro.batch, self.device, dtype))

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's value, in order. Slow; for messages about failures and for set-up."""
        found = [value] * self.place.num_workers
        if self.mesh is not None:
            dist.all_gather_object(found, value)
        return found

    # -- the scale that the loss carries through the backward pass ----------------------------------------------

    def _suited_scale(self, micro: Sequence[MicroBatch]) -> LossScale:
        """About 1 / weight, so that summed gradients stay in range; a power of two, so that it changes no digit."""
        rows = max((t.numel() for item in micro for t in _tensors(item.batch)), default=1)
        count = torch.tensor([float(rows * len(micro) * self.plan.num_parts)], device=self.device)
        if self.mesh is not None:
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
        suited = 2.0 ** -math.ceil(math.log2(count.item()))
        # 2^16 over the mean loss is where torch.amp.GradScaler begins, too.
        return LossScale(suited * 2.0**16, is_dynamic=True) if self.scale_is_dynamic else LossScale(suited)


@contextlib.contextmanager
def enter(place: Place, plan: Island) -> Iterator[LiveIsland]:
    """Join the island's other workers; leave together."""
    device = devices.select(place.device_kind, place.local_worker)
    if place.num_threads:
        torch.set_num_threads(place.num_threads)
    if plan.fsdp * plan.tp * plan.pp > 1:
        devices.hand_back_memory()
    if place.num_workers == 1:
        yield LiveIsland(place, plan, device, None)
        return
    _join(place)
    try:
        sizes = tuple(getattr(plan, axis) for axis in AXES)
        mesh = init_device_mesh(place.device_kind, sizes, mesh_dim_names=AXES)
        yield LiveIsland(place, plan, device, mesh)
    finally:
        dist.destroy_process_group()


def _join(place: Place) -> None:
    backend = devices.backend(place.device_kind)
    if not place.store_file and place.store is None:
        dist.init_process_group(backend)
        return
    store = place.store or dist.FileStore(place.store_file, place.num_workers)
    dist.init_process_group(backend, store=store, rank=place.worker, world_size=place.num_workers)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else []
    return [tensor for value in values for tensor in _tensors(value)]


def _moved(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _moved(value, device, dtype) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_moved(value, device, dtype) for value in batch)
    return batch

"""For a program that keeps its own loop: the island splits the model, and takes over three calls of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from konvoi.errors import JobError, PlanError
from konvoi.island import Gradient, LiveIsland
from konvoi.job.data.positions import part
from konvoi.parted import Parted, cut, first_sample, num_rows
from konvoi.plan.split.parts import Parts
from konvoi.values import MicroBatch, Objective

if TYPE_CHECKING:
    from konvoi.company import Company  # loads gRPC, which an island alone does without

T = TypeVar("T")
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class OwnLoop:
    """Made by `kv.join`. Every worker calls the same methods in the same order."""

    def __init__(self, island: LiveIsland, company: Company | None = None) -> None:
        """`company`: other islands, with which this one agrees now and then."""
        self._island, self._company = island, company
        self._parts: Parts | None = None
        self._gradient: Gradient | None = None
        self._is_mean = False  # whether the gradients are divided already

    @property
    def worker(self) -> int:
        """This worker's number among all of the launch; 0 is the one that should print and log."""
        before = self._company.number * self._island.place.num_workers if self._company is not None else 0
        return before + self._island.place.worker

    @property
    def num_workers(self) -> int:
        return self._island.place.num_workers * (self._company.islands if self._company is not None else 1)

    @property
    def device(self) -> torch.device:
        return self._island.device

    def prepare(
        self, model: nn.Module, optimizer: Optimizers, batches: Iterable[Any], *, objective: Objective | None = None
    ) -> tuple[nn.Module, Optimizers, Iterable[Any]]:
        """Split the model as the plan says. The optimizer object stays, so do its schedulers.

        Every worker starts with worker 0's weights. `batches` yields *global* batches (a DataLoader, or anything with
        dicts or tuples of tensors, samples first); what comes back yields this worker's part of each, on its device.
        `objective` is `(model, batch) -> (loss_sum, weight)`; None takes `model(**batch).loss`, a mean, as the models
        of transformers return it.

        Under pp the model that comes back is this worker's stages, and `run` is how it is called.

        Raises: JobError for an optimizer that has taken steps, or holds parameters that are not the model's; PlanError
        for what cannot be split so.
        """
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        names = _names_in_groups(model, optimizers)
        if self._company is not None:
            self._company.share_weights(model)
        self._copy_from_first(model)
        example = None
        if self._island.plan.pp > 1:
            example, batches = first_sample(batches)
        self._parts = self._island.split(model, objective or loss_of_model, seed=0, example=example)
        parameters = dict(self._parts.named_parameters())
        for one, groups in zip(optimizers, names, strict=True):
            for group, members in zip(one.param_groups, groups, strict=True):
                group["params"] = [parameters[name] for name in members if name in parameters]  # pp: of its stages
        modules = self._parts.modules
        split = modules[0] if self._island.plan.pp == 1 else _Stages(modules)
        company, seed = self._company, self._shared_seed()
        if company is None:
            return split, optimizer, Parted(batches, self._island, seed)
        company.begin(self._island, self._parts)
        seed = company.share("seed", seed)
        return split, optimizer, Parted(batches, self._island, seed, number=company.number, islands=company.islands)

    def forward_backward(self, batch: Any) -> float:
        """Gradients of this worker's part of a batch, summed over the workers. Returns the global mean loss."""
        parts, rows = self._prepared(), num_rows(batch)
        count = self._island.plan.num_micro_batches(rows * self._island.plan.num_parts)
        if rows < count:
            raise PlanError(
                "a worker's part of the batch has too few samples", found=f"{rows} samples, accumulate={count}"
            )
        cuts = [part(0, rows, number, count) for number in range(count)]
        micro = [MicroBatch(cut(batch, start, stop)) for start, stop in cuts]
        self._gradient, self._is_mean = self._island.forward_backward(parts, micro), False
        return self._gradient.loss

    def run(self, function: Callable[[nn.Module, Any], T], batch: Any) -> T:
        """What `function(model, batch)` returns, without gradients; it calls the model once. Every worker gets the
        answer to its own part of the batch."""
        with torch.no_grad(), self._island.computing():
            found: T = self._prepared().run(function, batch)
        if self._island.plan.pp == 1:
            return found
        told = self._island.tell_all_stages(tree_map_only(Tensor, Tensor.cpu, found))  # its device is not another's
        moved: T = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), told)
        return moved

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale the mean gradient of the whole model to at most `max_norm`; returns its norm before."""
        self._finish(max_norm)
        assert self._gradient is not None
        return self._gradient.norm

    def step(self, optimizer: Optimizers) -> bool:
        """Take the optimizer's step, on no worker where loss or gradient are not finite; returns whether it was. In a
        convoy, agree with the other islands where it is time."""
        self._finish(None)
        assert self._gradient is not None
        is_finite = self._island.is_finite(self._gradient)
        if is_finite:
            for one in [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer:
                one.step()
            self._prepared().refresh()
        self._island.after_step(is_finite)
        if self._company is not None:
            self._company.after_step(self._gradient.weight)
        self._gradient = None
        return is_finite

    def _finish(self, max_norm: float | None) -> None:
        if self._gradient is None:
            raise JobError(
                "there is no gradient to apply", hint="island.forward_backward(batch) comes first, once a step"
            )
        if not self._is_mean:
            self._island.clip(self._prepared(), self._gradient, max_norm)
            self._is_mean = True

    def _prepared(self) -> Parts:
        if self._parts is None:
            raise JobError(
                "the island has no model yet",
                hint="model, optimizer, batches = island.prepare(model, optimizer, batches)",
            )
        return self._parts

    def _copy_from_first(self, model: nn.Module) -> None:
        if self._island.mesh is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                held = tensor.detach().to(self.device)
                dist.broadcast(held, src=0)
                tensor.data.copy_(held)

    def _shared_seed(self) -> int:
        return int(self._island.gather_objects(int(torch.randint(2**62, ())))[0])


def loss_of_model(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The objective of a model that computes its own mean loss, as those of transformers do.

    The weight is the number of labels that the mean runs over: those that are not -100, without the first of each
    sequence for models that shift them (`...ForCausalLM`, `...LMHeadModel`); samples where there are no labels.
    """
    loss: Tensor = model(**batch).loss
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        weight = torch.tensor(float(num_rows(batch)), device=loss.device)
    else:
        shifts = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        weight = ((labels[..., 1:] if shifts else labels) != -100).sum().float()
    # A part without any label has a mean of nothing, which is nan.
    return torch.where(weight > 0, loss, torch.zeros_like(loss)) * weight, weight


class _Stages(nn.ModuleList):
    """What a worker holds of a model that is split into stages."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise PlanError(
            "no worker holds all of a model that is split into stages",
            hint="island.forward_backward(batch), or island.run(lambda model, batch: model(**batch), batch)",
        )


def _names_in_groups(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[list[list[str]]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        if optimizer.state:
            raise JobError("the optimizer has taken steps already", hint="prepare it before its first step")
        for group in optimizer.param_groups:
            if strangers := [p for p in group["params"] if p not in names]:
                raise JobError(
                    "the optimizer holds parameters that are not the model's", found=f"{len(strangers)} of them"
                )
    return [[[names[p] for p in group["params"]] for group in optimizer.param_groups] for optimizer in optimizers]

"""For a program that keeps its own loop: the island splits the model, and takes over three calls of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from konvoi.errors import JobError, PlanError
from konvoi.island import Gradient, LiveIsland
from konvoi.job.data.positions import part
from konvoi.plan.split.parts import Parts
from konvoi.values import MicroBatch, Objective

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class OwnLoop:
    """Made by `kv.join`. Every worker calls the same methods in the same order."""

    def __init__(self, island: LiveIsland) -> None:
        self._island = island
        self._parts: Parts | None = None
        self._gradient: Gradient | None = None
        self._is_mean = False  # whether the gradients are divided already

    @property
    def worker(self) -> int:
        """This worker's number; 0 is the one that should print and log."""
        return self._island.place.worker

    @property
    def num_workers(self) -> int:
        return self._island.place.num_workers

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

        Raises: PlanError for a pipeline; JobError for an optimizer that has taken steps, or holds parameters that are
        not the model's.
        """
        if self._island.plan.pp > 1:
            raise PlanError(
                "a program with its own loop cannot be split into stages yet",
                found=f"pp={self._island.plan.pp}",
                hint="konvoi.train runs pipelines; here, dp and fsdp",
            )
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        names = _names_in_groups(model, optimizers)
        self._copy_from_first(model)
        self._parts = self._island.split(model, objective or loss_of_model, seed=0)
        parameters = dict(self._parts.named_parameters())
        for one, groups in zip(optimizers, names, strict=True):
            for group, members in zip(one.param_groups, groups, strict=True):
                group["params"] = [parameters[name] for name in members]
        return self._parts.modules[0], optimizer, _Parted(batches, self._island, self._shared_seed())

    def forward_backward(self, batch: Any) -> float:
        """Gradients of this worker's part of a batch, summed over the workers. Returns the global mean loss."""
        parts, rows = self._prepared(), _num_rows(batch)
        count = self._island.plan.accumulate
        if rows < count:
            raise PlanError(
                "a worker's part of the batch has too few samples", found=f"{rows} samples, accumulate={count}"
            )
        cuts = [part(0, rows, number, count) for number in range(count)]
        micro = [MicroBatch(_cut(batch, start, stop)) for start, stop in cuts]
        self._gradient, self._is_mean = self._island.forward_backward(parts, micro), False
        return self._gradient.loss

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale the mean gradient of the whole model to at most `max_norm`; returns its norm before."""
        self._finish(max_norm)
        assert self._gradient is not None
        return self._gradient.norm

    def step(self, optimizer: Optimizers) -> bool:
        """Take the optimizer's step, on no worker where loss or gradient are not finite; returns whether it was."""
        self._finish(None)
        assert self._gradient is not None
        is_finite = self._island.is_finite(self._gradient)
        if is_finite:
            for one in [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer:
                one.step()
        self._island.after_step(is_finite)
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
        weight = torch.tensor(float(_num_rows(batch)), device=loss.device)
    else:
        shifts = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        weight = ((labels[..., 1:] if shifts else labels) != -100).sum().float()
    # A part without any label has a mean of nothing, which is nan.
    return torch.where(weight > 0, loss, torch.zeros_like(loss)) * weight, weight


class _Parted:
    """This worker's part of every global batch."""

    def __init__(self, batches: Iterable[Any], island: LiveIsland, seed: int) -> None:
        self.island, self.is_cut = island, False
        self.batches = batches
        self.part, self.num_parts = island.part, island.plan.num_parts
        if isinstance(batches, DataLoader) and batches.batch_sampler is not None and island.place.num_workers > 1:
            # Read only what is this worker's: the same batches of indices everywhere, each worker its part of them.
            self.batches, self.is_cut = _parted_loader(batches, self.part, self.num_parts, seed), True

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if not self.is_cut:
                rows = _num_rows(batch)
                if rows < self.num_parts:
                    continue  # the last, incomplete one: every worker leaves it out
                batch = _cut(batch, *part(0, rows, self.part, self.num_parts))
            yield self.island.to_device(MicroBatch(batch)).batch


class _PartOfEach:
    """A batch sampler: this worker's part of each batch of another's."""

    def __init__(self, batches: Any, worker: int, num_workers: int) -> None:
        self.batches, self.worker, self.num_workers = batches, worker, num_workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if len(batch) >= self.num_workers:
                start, stop = part(0, len(batch), self.worker, self.num_workers)
                yield batch[start:stop]


def _parted_loader(loader: DataLoader[Any], worker: int, num_workers: int, seed: int) -> DataLoader[Any]:
    if isinstance(loader.sampler, RandomSampler) and loader.sampler.generator is None:
        loader.sampler.generator = torch.Generator().manual_seed(seed)  # the same order on every worker
    return DataLoader(
        loader.dataset,
        batch_sampler=_PartOfEach(loader.batch_sampler, worker, num_workers),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,  # it draws a number from it at each pass: the order depends on that, too
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


def _num_rows(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.shape[0]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return max((_num_rows(value) for value in values), default=0)


def _cut(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: _cut(value, start, stop) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_cut(value, start, stop) for value in batch)
    return batch

"""What a worker learns with, beside the model: optimizers, averaged weights, and all of it by name for checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from konvoi.errors import CheckpointMismatch
from konvoi.job.adapt import Adapted
from konvoi.job.job import Job
from konvoi.plan.split.parts import Parts, grad_of, local


class Learner:
    """The optimizers of a job over this worker's parameters, and their averaged copy."""

    def __init__(self, job: Job, parts: Parts, num_steps: int) -> None:
        self.job, self.parts, self.num_steps = job, parts, num_steps
        self.parameters = dict(parts.named_parameters())
        trainable = [(name, p) for name, p in self.parameters.items() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = job.optimizer.build(trainable)
        self.clip_grad_norm = job.clip_grad_norm  # of the gradient that is found here
        self.average = {name: p.detach().clone() for name, p in trainable} if job.ema else {}

    def lr(self, step: int) -> float:
        """Set every group's learning rate for a step (1 is the first); returns the first group's."""
        factor = self.job.schedule.factor(step, self.num_steps)
        for group in self.groups():
            group["lr"] = group["initial_lr"] * factor
        return float(next(self.groups())["lr"])

    def groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        self.parts.refresh()
        if self.job.ema:
            with torch.no_grad():
                new = [local(self.parameters[name]) for name in self.average]
                torch._foreach_lerp_([local(tensor) for tensor in self.average.values()], new, 1 - self.job.ema)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights where the job keeps them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, average in self.average.items():
                mine, other = local(self.parameters[name]), local(average)
                held = mine.clone()
                mine.copy_(other)
                other.copy_(held)
        self.parts.refresh()

    # -- state by name --------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds: `model.*`, `optim.*`, `ema.*`. Shares the memory of what is trained.

        With adapters, what the model's weights were read from is not written again.
        """
        model = self.job.model
        given = model.is_given if isinstance(model, Adapted) else lambda name: False
        held = {name: p for name, p in self.parameters.items() if p.requires_grad or not given(name)}
        state: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in held.items()}
        state |= {f"model.{name}": buffer for name, buffer in self.parts.named_buffers()}
        state |= {f"ema.{name}": tensor for name, tensor in self.average.items()}
        names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        for optimizer in self.optimizers:
            for parameter, values in optimizer.state.items():
                state |= {f"optim.{names[parameter]}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        return state

    def shapes(self) -> dict[str, list[int]]:
        """The model's tensors by name, whole: what tells one model's checkpoint from another's."""
        named = [*self.parameters.items(), *self.parts.named_buffers()]
        return {name: list(tensor.shape) for name, tensor in named}

    def allocate(self) -> None:
        """Make the optimizers' state exist, so that a checkpoint can be read into it."""
        for group in self.groups():
            group["lr"] = 0.0  # and zero gradients: the weights stay as they are
        for parameter in self.parameters.values():
            parameter.grad = (
                torch.zeros_like(parameter) if parameter.requires_grad and parameter.grad is None else parameter.grad
            )
        for optimizer in self.optimizers:
            optimizer.step()

    def begin_anew(self, missing: Collection[str]) -> list[str]:
        """What a checkpoint did not hold begins as in a new run; returns what a person should know of it."""
        notes = []
        anew = {name for name in self.parameters for key in missing if key.startswith(f"optim.{name}.")}
        for optimizer in self.optimizers:
            for name in anew:
                optimizer.state.pop(self.parameters[name], None)
        if anew:
            which = f"{len(anew)} of {len(self.parameters)} parameters ({min(anew)}, ...)"
            notes.append(f"the checkpoint holds no state of this optimizer for {which}: it begins anew")
        averages = [name for name in self.average if f"ema.{name}" in missing]
        with torch.no_grad():
            for name in averages:
                self.average[name].copy_(self.parameters[name])
        if averages:
            notes.append("the checkpoint holds no averaged weights: the average begins at the present ones")
        return notes


class Follower(Learner):
    """Of an island that steps with gradients which all islands have agreed on, and only with those."""

    def __init__(self, job: Job, parts: Parts, num_steps: int) -> None:
        super().__init__(job, parts, num_steps)
        self.clip_grad_norm = None  # their mean is clipped
        self.state = self._fresh_state()  # of the optimizers, and averaged weights: the same on all islands

    def _fresh_state(self) -> list[Tensor]:
        """As it is before the first step, in tensors that are there from now on."""
        self.allocate()
        self.parts.begin()
        states = [of for optimizer in self.optimizers for of in optimizer.state.values()]
        found = [value for of in states for _, value in sorted(of.items()) if isinstance(value, Tensor)]
        for value in found:
            value.zero_()
        return [*found, *self.average.values()]

    def step(self) -> None:
        """Not yet: `step_with` does."""

    def gradients(self) -> dict[str, Tensor]:
        """Of what is trained, by name."""
        return {name: local(grad_of(p)) for name, p in self.parameters.items() if p.requires_grad}

    def sums(self, weight: float) -> dict[str, Tensor]:
        """What the mean gradient of so many tokens or samples adds up to; of none, zeros."""
        found = self.gradients().items()
        return {name: value * weight if weight else torch.zeros_like(value) for name, value in found}

    def step_with(self, step: int, gradients: Mapping[str, Tensor]) -> None:
        """The step of this number, with these."""
        self.lr(min(max(1, step), self.num_steps))
        for name, mine in self.gradients().items():
            mine.copy_(gradients[name])
        norm, most = self.parts.grad_norm().item(), self.job.clip_grad_norm
        if most is not None and norm > most:
            torch._foreach_mul_(self.parts.gradients(), most / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        super().step()


def check_same_model(found: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    """Raises: CheckpointMismatch, with the first differences by name."""
    if found == expected:
        return
    differences = [
        f"{name}: {found.get(name, 'absent')} in the checkpoint, {expected.get(name, 'absent')} in the model"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    raise CheckpointMismatch(
        "this checkpoint is of another model",
        found="; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else ""),
        hint="resume with the recipe that the run began with, or start a new run under another --name",
    )


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """As `Learner.shapes`, of a module that need not be filled in."""
    kept = module.state_dict(keep_vars=True)
    named = [*module.named_parameters(), *((name, buffer) for name, buffer in module.named_buffers() if name in kept)]
    return {name: list(tensor.shape) for name, tensor in named}


class Buffers:
    """Running statistics and the like, which the forward pass changes. The first worker's of a group hold on all of it,
    as under DDP.

    They are seen through their modules, as some replace a buffer instead of writing into it.
    """

    def __init__(self, parts: Parts, group: dist.ProcessGroup | None, *, is_shared: bool, can_undo: bool) -> None:
        self.group = group
        self.owners: list[tuple[dict[str, Tensor | None], str]] = []
        names = {name for name, _ in parts.named_buffers()}
        for prefix, module in zip(parts.names, parts.modules, strict=True):
            for path, child in module.named_modules(prefix=prefix):
                self.owners += [
                    (child._buffers, leaf) for leaf in child._buffers if f"{path}.{leaf}".lstrip(".") in names
                ]
        self.is_shared = is_shared
        self.good = [buffer.clone() for buffer in self.tensors()] if can_undo else None

    def tensors(self) -> list[Tensor]:
        return [buffer for buffers, leaf in self.owners if (buffer := buffers[leaf]) is not None]

    @torch.no_grad()
    def after_step(self, is_finite: bool) -> None:
        """Agree on what the step did to them; one that is left out did nothing."""
        if not self.owners:
            return
        present = self.tensors()
        if self.good is not None and not is_finite:
            torch._foreach_copy_(present, self.good)
            return
        if self.is_shared:
            for dtype in dict.fromkeys(buffer.dtype for buffer in present):
                _broadcast([buffer for buffer in present if buffer.dtype == dtype], self.group)
        if self.good is not None:
            torch._foreach_copy_(self.good, present)


def _broadcast(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.broadcast(flat, group=group, group_src=0)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

"""What a worker learns with, beside the model: optimizers, averaged weights, and all of it by name for checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from konvoi.errors import CheckpointMismatch
from konvoi.job.job import Job
from konvoi.plan.split.parts import Parts, local


class Learner:
    """The optimizers of a job over this worker's parameters, and their averaged copy."""

    def __init__(self, job: Job, parts: Parts, num_steps: int) -> None:
        self.job, self.parts, self.num_steps = job, parts, num_steps
        self.parameters = dict(parts.named_parameters())
        trainable = [(name, p) for name, p in self.parameters.items() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = job.optimizer.build(trainable)
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

    # -- state by name --------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds: `model.*`, `optim.*`, `ema.*`. Shares the memory of what is trained."""
        state: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        state |= {f"model.{name}": buffer for name, buffer in self.parts.named_buffers()}
        state |= {f"ema.{name}": tensor for name, tensor in self.average.items()}
        names = {p: name for name, p in self.parameters.items()}
        for optimizer in self.optimizers:
            for parameter, values in optimizer.state.items():
                state |= {f"optim.{names[parameter]}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        return state

    def shapes(self) -> dict[str, list[int]]:
        """The model's tensors by name, whole: what tells one model's checkpoint from another's."""
        return {name: list(p.shape) for name, p in self.parameters.items()}

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

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())


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


def meta_shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in module.named_parameters()}

"""Many clients are trained at once: the gradients of all in one computation, one optimizer over all their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from konvoi.errors import PlanError
from konvoi.job.job import Job
from konvoi.population.gradient import Gradients
from konvoi.population.reading import Read
from konvoi.population.work import Learnt, Work
from konvoi.values import Ignores

ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop")  # exact over stacks of weights


class Together:
    """Use one for one model. Raises: PlanError for a job whose clients cannot be trained so, with the reason."""

    def __init__(
        self, module: nn.Module, job: Job, num_rounds: int, read: Read, device: torch.device, sizes: Sequence[int]
    ):
        self.module, self.job, self.num_rounds, self.read, self.device = module, job, num_rounds, read, device
        self.sizes, self.length = sorted(sizes), 0  # of stacks
        self.gradients = Gradients(module, job.objective)
        self.named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        kinds = {name for one in job.optimizer.build(self.named) for name in (type(one).__name__,)}
        if others := sorted(kinds - {*ELEMENTWISE}):
            raise PlanError("this optimizer looks at a matrix as a whole", found=", ".join(others))
        if any(True for _ in module.buffers()):
            raise PlanError("the model keeps statistics beside its parameters", found=type(module).__name__)

    def train(self, work: Work) -> Learnt:
        """Clients with fewer steps are done earlier; what they compute beyond is thrown away."""
        num_steps = [len(one) for one in work.batches]
        order = sorted(range(len(num_steps)), key=lambda number: -num_steps[number])
        is_uneven = num_steps[order[0]] != num_steps[order[-1]]
        stack = _Stack(self, work, order, is_uneven)
        losses, weights = torch.zeros(2, len(order), dtype=torch.float64, device=self.device)
        for step in range(num_steps[order[0]]):
            active = sum(count > step for count in num_steps)
            smallest = next((size for size in self.sizes if size >= active), stack.size)
            if smallest < stack.size:
                stack.cut(smallest)
            rows = [work.batches[number][step] if step < num_steps[number] else () for number in order[: stack.size]]
            loss, weight = stack.step(rows)
            losses[:active] += loss[:active]
            weights[:active] += weight[:active]
            if is_uneven:
                stack.keep([place for place in range(active) if num_steps[order[place]] == step + 1])
        stack.write()
        back = torch.tensor(np.argsort(order))
        rates = torch.tensor(num_steps, dtype=torch.float64) * stack.lr
        return Learnt(losses.cpu()[back], weights.cpu()[back], rates)


class _Stack:
    """Clients' weights while they are trained, those with the most steps first."""

    def __init__(self, way: Together, work: Work, order: Sequence[int], is_uneven: bool) -> None:
        self.way, self.work, self.size = way, work, len(order)
        self.order = torch.tensor(order)
        is_sorted = list(order) == [*range(len(order))]
        self.present = work.weights if is_sorted else [weights[self.order] for weights in work.weights]
        self.begin = [weights.clone() for weights in self.present] if work.proximal else []
        self.done = [torch.empty_like(weights) for weights in self.present] if is_uneven else []
        self.corrections = None if work.corrections is None else [one[self.order] for one in work.corrections]
        self.optimizers = way.job.optimizer.build(way.named)  # a past they have not; groups by rule are of the names
        places = {p: number for number, (_, p) in enumerate(way.named)}
        factor = way.job.schedule.factor(work.round, way.num_rounds)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["places"] = [places[p] for p in group["params"]]
            group["lr"] = group["initial_lr"] * factor
        self.lr = float(self.optimizers[0].param_groups[0]["lr"])
        # Fused kernels take a gradient as it lies in memory, without a look at its strides.
        self.any_layout = not any(optimizer.defaults.get("fused") for optimizer in self.optimizers)
        self._point()

    def _point(self) -> None:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["params"] = [self.present[place] for place in group["places"]]

    def cut(self, size: int) -> None:
        """Go on with the first of them."""
        before, self.size = self.present, size
        self.present = [weights[:size].clone() for weights in before]
        new = dict(zip(map(id, before), self.present, strict=True))
        for optimizer in self.optimizers:
            for old in list(optimizer.state):
                state = optimizer.state.pop(old)
                cut = {name: v[:size].clone() if _is_stacked(v, old) else v for name, v in state.items()}
                optimizer.state[new[id(old)]] = cut
        self._point()

    def step(self, rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """One step of each. Returns the sums of losses, and the weights that they run over."""
        way, work = self.way, self.work
        losses, weights, gradients = way.gradients(self.present, self._batch(rows))
        _scale(gradients, torch.where(weights > 0, 1 / weights, 0.0))
        if work.proximal:
            pulls = [now - begin[: self.size] for now, begin in zip(self.present, self.begin, strict=True)]
            torch._foreach_add_(gradients, pulls, alpha=work.proximal)
        if way.job.clip_grad_norm is not None:
            _clip(gradients, way.job.clip_grad_norm)
        if self.corrections is not None:
            torch._foreach_add_(gradients, [one[: self.size] for one in self.corrections])
        for weight, gradient in zip(self.present, gradients, strict=True):
            weight.grad = gradient if self.any_layout else gradient.contiguous()
        for optimizer in self.optimizers:
            optimizer.step()
        return losses.double(), weights.double()

    def _batch(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """(clients, batch, ...) each. Shorter batches are filled up with samples that do not count."""
        length = max(map(len, rows))
        if isinstance(self.way.job.objective, Ignores):
            length = max(length, self.way.length)  # as many shapes as there must be
            self.way.length = length
        filled = np.zeros((len(rows), length), np.int64)
        extra = np.ones((len(rows), length), bool)
        for number, one in enumerate(rows):
            filled[number] = one[0] if len(one) else next(some[0] for some in rows if len(some))
            filled[number, : len(one)], extra[number, : len(one)] = one, False
        batch = self.way.read(filled.reshape(-1), self.work.round)
        stacked = {name: self._placed(t).unflatten(0, filled.shape) for name, t in batch.items()}
        if not extra.any():
            return stacked
        objective = self.way.job.objective
        assert isinstance(objective, Ignores)  # who cannot leave out samples gets clients with equal batches
        extra[[not len(one) for one in rows]] = False  # of who is done, which is thrown away
        return objective.without(stacked, torch.from_numpy(extra).to(self.way.device))

    def _placed(self, tensor: Tensor) -> Tensor:
        """On the device; floating-point inputs in float64 where everything is."""
        wants = self.present[0].dtype == torch.float64 and tensor.is_floating_point()
        return tensor.to(self.way.device, torch.float64 if wants else None)

    def keep(self, places: Sequence[int]) -> None:
        """What these have now is what they end with."""
        for done, present in zip(self.done, self.present, strict=True):
            done[list(places)] = present[list(places)]

    def write(self) -> None:
        """What all ended with, into the work's weights."""
        for weights, done in zip(self.work.weights, self.done or self.present, strict=True):
            if done is not weights:
                weights[self.order] = done


def _is_stacked(value: Any, weights: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weights.shape


def _scale(gradients: Sequence[Tensor], factors: Tensor) -> None:
    """Each client's, by its own."""
    for gradient in gradients:
        gradient.mul_(factors.to(gradient.dtype).view(-1, *(1,) * (gradient.dim() - 1)))


def _clip(gradients: list[Tensor], most: float) -> None:
    """Each client's gradient, no longer than this; as torch.nn.utils.clip_grad_norm_."""
    squares = torch.stack([g.flatten(1).square().sum(1, dtype=torch.float64) for g in gradients]).sum(0)
    _scale(gradients, (most / (squares.sqrt() + 1e-6)).clamp(max=1.0))

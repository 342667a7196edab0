"""Many clients are trained at once: the gradients of all in one computation, one optimizer over all their weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from konvoi.errors import PlanError
from konvoi.job.data.positions import Ints
from konvoi.job.job import Job
from konvoi.population.gradient import Found, Gradients
from konvoi.population.reading import Read
from konvoi.population.work import Learnt, Work
from konvoi.values import Ignores

ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop")  # exact over stacks of weights
NOISE = (
    1e-3  # of a gradient: what kernels for other sizes may change in float32, and samples that meet in a model do not
)


class Together:
    """Use one for one model. Raises: PlanError for a job whose clients cannot be trained so, with the reason."""

    def __init__(
        self, module: nn.Module, job: Job, num_rounds: int, read: Read, device: torch.device, sizes: Sequence[int] = ()
    ):
        self.module, self.job, self.num_rounds, self.read, self.device = module, job, num_rounds, read, device
        self.sizes, self.length = sorted(sizes), 0  # of stacks
        self.can_fill_up = isinstance(job.objective, Ignores)  # batches may be of unequal numbers of samples
        self.gradients = Gradients(module, job.objective)
        self.named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        kinds = {name for one in job.optimizer.build(self.named) for name in (type(one).__name__,)}
        if others := sorted(kinds - {*ELEMENTWISE}):
            raise PlanError("this optimizer looks at a matrix as a whole", found=", ".join(others))
        if any(True for _ in module.buffers()):
            raise PlanError("the model keeps statistics beside its parameters", found=type(module).__name__)

    def train(self, work: Work) -> Learnt:
        """Clients with fewer steps are done earlier; what they compute beyond is thrown away."""
        stack = _Stack(self, work, sorted(range(len(work.batches)), key=lambda number: -len(work.batches[number])))
        losses, weights = torch.zeros(2, len(stack.order), dtype=torch.float64, device=self.device)
        while stack.active:
            last = max(stack.active) + 1
            smallest = next((size for size in self.sizes if size >= last), stack.size)
            if smallest < stack.size:
                stack.cut(smallest)
            loss, weight = stack.step()
            losses[: stack.size] += loss
            weights[: stack.size] += weight
        stack.write()
        back = torch.argsort(stack.order)
        rates = torch.tensor([len(one) for one in work.batches], dtype=torch.float64) * stack.lr
        return Learnt(losses.cpu()[back], weights.cpu()[back], rates)

    def check_filling_up(self, batch: Ints) -> None:
        """See, at a client's batch, whether samples that do not count change nothing for those that do; a client that
        is filled up with them would else learn something else."""
        if not self.can_fill_up:
            return
        draw = torch.Generator().manual_seed(0)  # weights that are zero at first would hide what flows through them
        weights = [p.detach() + 0.01 * torch.randn(p.shape, generator=draw).to(p) for _, p in self.named]
        stacks = [weight.unsqueeze(0) for weight in weights]
        found = []
        for number in (0, len(batch)):
            rows = np.concatenate([batch, np.repeat(batch[:1], number)])
            extra = np.arange(len(rows))[None] >= len(batch)
            gradients = self.gradients.plainly(stacks, self.stacked(rows[None], extra, 1, stacks[0].dtype))[2]
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        alone, filled = found
        self.can_fill_up = bool((filled - alone).norm() <= NOISE * alone.norm())

    def stacked(self, rows: Ints, extra: NDArray[np.bool_], round: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The samples of these rows, (clients, batch, ...) each, of which those that are `extra` do not count."""
        batch = self.read(rows.reshape(-1), round)
        found = {name: self._placed(tensor, dtype).unflatten(0, rows.shape) for name, tensor in batch.items()}
        if not extra.any():
            return found
        assert isinstance(self.job.objective, Ignores)  # who cannot leave out samples gets clients with equal batches
        return self.job.objective.without(found, torch.from_numpy(extra).to(self.device))

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """On the device; floating-point inputs in float64 where everything is."""
        wants = dtype == torch.float64 and tensor.is_floating_point()
        return tensor.to(self.device, torch.float64 if wants else None)


class _Stack:
    """Clients' weights while they are trained, those with the most steps first."""

    def __init__(self, way: Together, work: Work, order: Sequence[int]) -> None:
        self.way, self.work, self.size = way, work, len(order)
        self.order = torch.tensor(order)
        self.left = [deque(work.batches[number]) for number in order]  # of each: its batches
        self.active = {place for place, batches in enumerate(self.left) if batches}  # who is not done
        is_sorted = list(order) == [*range(len(order))]
        self.present = work.weights if is_sorted else [weights[self.order] for weights in work.weights]
        self.begin = [weights.clone() for weights in self.present] if work.proximal else []
        # What those end with who come to it earlier; made when there are such.
        self.done: list[Tensor] = []
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

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of each. Returns the sums of losses, and the weights that they run over; zeros of who is done."""
        losses, weights, gradients = self._gradients()
        is_active = torch.zeros(self.size, dtype=torch.bool)
        is_active[[*self.active]] = True
        told = [torch.where(is_active.to(one.device), one.double(), 0.0) for one in (losses, weights)]
        if self.active:
            self._apply(gradients, weights)
        self._end([place for place in self.active if not self.left[place]])
        return told[0], told[1]

    def _gradients(self) -> Found:
        """Of each client's next batch that counts anything. A batch that does not is no step, one by one: nothing
        decays or moves, and an optimizer that counts its steps does not count it."""
        rows = [self._next(place) for place in range(self.size)]
        while True:
            losses, weights, gradients = self._found(rows)
            counts = weights.tolist()
            idle = [place for place in self.active if counts[place] == 0]
            if not idle:
                return losses, weights, gradients
            self._end([place for place in idle if not self.left[place]])
            if not self.active:
                return losses, weights, gradients
            for place in idle:
                rows[place] = self._next(place)

    def _found(self, rows: Sequence[Any]) -> Found:
        """Of all at once, or where no batch may be filled up, of those at once that have batches of one size."""
        lengths = [len(one) for one in rows]
        if self.way.can_fill_up or len({*lengths} - {0}) == 1:
            return self.way.gradients(self.present, self._batch(rows))
        losses, weights = torch.zeros(2, self.size, dtype=torch.float64, device=self.way.device)
        gradients = [torch.zeros_like(one) for one in self.present]
        for length in {*lengths} - {0}:
            at = [place for place in range(self.size) if lengths[place] == length]
            found = self.way.gradients([one[at] for one in self.present], self._batch([rows[place] for place in at]))
            for whole, part in zip((losses, weights, *gradients), (*found[:2], *found[2]), strict=True):
                whole[at] = part.to(whole.dtype)
        return losses, weights, gradients

    def _next(self, place: int) -> Any:
        return self.left[place].popleft() if self.left[place] else ()

    def _apply(self, gradients: list[Tensor], weights: Tensor) -> None:
        way, work = self.way, self.work
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

    def _batch(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """(clients, batch, ...) each. Shorter batches are filled up with samples that do not count."""
        length = max(map(len, rows))
        if self.way.can_fill_up:
            length = max(length, self.way.length)  # as many shapes as there must be
            self.way.length = length
        filled = np.zeros((len(rows), length), np.int64)
        extra = np.ones((len(rows), length), bool)
        for number, one in enumerate(rows):
            filled[number] = one[0] if len(one) else next(some[0] for some in rows if len(some))
            filled[number, : len(one)], extra[number, : len(one)] = one, False
        extra[[not len(one) for one in rows]] = False  # of who is done, which is thrown away
        return self.way.stacked(filled, extra, self.work.round, self.present[0].dtype)

    def _end(self, places: Sequence[int]) -> None:
        """What these have now is what they end with."""
        self.active -= {*places}
        if places and self.active and not self.done:
            self.done = [torch.empty_like(weights) for weights in self.work.weights]
        if places and self.done:
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

"""`Parts`: what one worker holds of a model, and how a step runs over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from konvoi.values import MicroBatch, Objective


@dataclass(frozen=True)
class Tie:
    """One tensor under several names. The owner's name is the one that state, updates and exports see."""

    owner: str
    aliases: tuple[str, ...]


ROW_LENGTH = 3  # loss_sum, weight, stop


@dataclass(frozen=True)
class Parts:
    """A frozen value; a split returns a changed copy.

    A step is: `begin()`, `forward_backward(...)`, `finish()`, then `gradients()` hold the gradient of
    `scale * loss_sum` over the global batch, each worker its own part of it. `add_up(row)` is called once in between.
    """

    modules: tuple[nn.Module, ...]  # one, unless a pipeline gives a worker several stages
    names: tuple[str, ...]  # where each stands in the whole model: "" is the root
    objective: Objective
    forward_backward: ForwardBackward
    add_up: Callable[[Tensor], None]  # ROW_LENGTH sums of this worker become those of all, in place, by `finish`
    finish: Callable[[], None]  # wait until gradients and row hold every worker's share
    begin: Callable[[], None]
    gradients: Callable[[], list[Tensor]]  # local tensors, every element exactly once; scaled in place
    run: Run  # forward only
    norm_groups: tuple[torch.distributed.ProcessGroup, ...] = ()  # over which to add the norm's squares
    counted: Callable[[], list[Tensor]] | None = None  # what the norm adds up here, where others hold the rest, too
    ties: tuple[Tie, ...] = ()
    is_pipeline: bool = False
    copies: frozenset[str] = frozenset()  # parameters of this worker's that another stage owns
    refresh: Callable[[], None] = lambda: None  # to be called when weights were written: what was made of them is old

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter that this worker owns by its name in the whole model, ties once."""
        for prefix, module in zip(self.names, self.modules, strict=True):
            for name, parameter in module.named_parameters(prefix=prefix):
                if name not in self.copies:
                    yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The persistent buffers: what a state dict holds beside the parameters."""
        for prefix, module in zip(self.names, self.modules, strict=True):
            kept = module.state_dict(keep_vars=True)
            for name, buffer in module.named_buffers(prefix=prefix):
                if name.removeprefix(f"{prefix}.") in kept:
                    yield name, buffer

    def grad_norm(self) -> Tensor:
        """The 2-norm over the whole model of what `gradients()` hold: the same number on every worker."""
        gradients = (self.counted or self.gradients)() or [torch.zeros(1, device=self.gradients()[0].device)]
        norms = torch._foreach_norm(gradients)
        squares = (
            torch.stack([norm.double() if norm.device.type == "cpu" else norm.float() for norm in norms]).square().sum()
        )
        for group in self.norm_groups:
            torch.distributed.all_reduce(squares, group=group)
        return squares.sqrt()


ForwardBackward = Callable[[Sequence[MicroBatch], float, Callable[[Tensor], None]], None]
"""`(micro_batches, scale, announce)`: gradients of `scale * loss_sum` are added up; `announce(sums)` is called once,
before the last backward pass, with this worker's `[loss_sum, weight]`, so that its reduction overlaps."""


Run = Callable[[Callable[[nn.Module, Any], Any], Any], Any]
"""`(function, batch)`: what `function(module, batch)` returns, where the model ends; None on other workers, which take
part. Inside, `module` is called at most once."""


def single(module: nn.Module, objective: Objective) -> Parts:
    """The whole model on one worker: where every split but a pipeline starts."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Parts(
        modules=(module,),
        names=("",),
        objective=objective,
        forward_backward=partial(run_micro_batches, module, objective),  # a closure would be a frame more
        begin=partial(drop_gradients, trainable),
        add_up=lambda row: None,
        finish=lambda: None,
        gradients=partial(gradients_of, trainable),
        run=lambda function, batch: function(module, batch),
        ties=find_ties(module),
    )


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [local(grad_of(parameter)) for parameter in parameters]


def run_micro_batches(
    module: nn.Module,
    objective: Objective,
    micro: Sequence[MicroBatch],
    scale: float,
    announce: Callable[[Tensor], None],
    before_last: Callable[[], None] = lambda: None,
) -> None:
    """Forward and backward over each micro-batch in turn; only sums are kept between them."""
    sums: Tensor | None = None
    for number, item in enumerate(micro):
        is_last = number == len(micro) - 1
        if is_last:
            before_last()
        loss_sum, weight = objective(module, item.batch)
        if not item.counts:
            loss_sum, weight = loss_sum * 0.0, weight * 0.0
        pair = torch.stack([loss_sum.detach(), weight.detach().to(loss_sum)])
        pair = pair if pair.dtype == torch.float64 else pair.float()
        sums = pair if sums is None else sums + pair
        if is_last:
            announce(sums)
        torch.autograd.backward(loss_sum * scale)  # unlike Tensor.backward, it leaves no mode that tp is in


def grad_of(parameter: nn.Parameter) -> Tensor:
    """Its gradient. One that the objective does not reach is zero, under every plan: weight decay still applies."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def local(tensor: Tensor) -> Tensor:
    """This worker's own part of a tensor; shares its memory."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor  # half a second to load, which only sharded plans need

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, own: Tensor) -> Tensor:
    """This worker's own part of a tensor that lies on the workers as `parameter` does."""
    if type(parameter) in (Tensor, nn.Parameter):
        return own
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def find_ties(module: nn.Module) -> tuple[Tie, ...]:
    """Parameters that stand under several names, found by identity."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(Tie(found[0], tuple(found[1:])) for found in names.values() if len(found) > 1)


def retie(module: nn.Module, ties: Sequence[Tie]) -> None:
    """Make the aliases the owner's parameter again, after it was replaced."""
    for tie in ties:
        owner = module.get_parameter(tie.owner)
        for alias in tie.aliases:
            path, _, leaf = alias.rpartition(".")
            setattr(module.get_submodule(path), leaf, owner)

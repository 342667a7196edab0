"""Which blocks each stage of a pipeline holds, and a stage itself: the model, with what it does not hold elsewhere."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from konvoi.errors import PlanError
from konvoi.plan.island import TWO_STAGES
from konvoi.plan.split.blocks import find_blocks
from konvoi.plan.split.elsewhere import Leave, put_in_place, remove_own_parameters, replace_modules
from konvoi.plan.split.parts import Tie, find_ties
from konvoi.values import MicroBatch


def stages_of(worker: int, pp: int, schedule: str) -> list[int]:
    """The stages that one worker of the axis holds.

    >>> stages_of(0, 2, "1f1b"), stages_of(0, 2, "interleaved"), stages_of(0, 2, "zbv")
    ([0], [0, 2], [0, 3])
    """
    if schedule not in TWO_STAGES:
        return [worker]
    return [worker, worker + pp if schedule == "interleaved" else 2 * pp - 1 - worker]


def cut(costs: Sequence[float], num_stages: int) -> list[range]:
    """Which blocks each stage holds: contiguous, none empty, the costliest stage as cheap as can be.

    >>> cut([1, 1, 1, 1, 4], 2)
    [range(0, 4), range(4, 5)]
    """
    if len(costs) < num_stages:
        raise PlanError(
            "more stages than blocks",
            found=f"{num_stages} stages for {len(costs)} blocks",
            expected=f"at most {len(costs)} stages",
        )
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    # best[s][n]: the costliest of s stages over the first n blocks, and where the last of them begins.
    best = [[(total[n], 0) for n in range(len(total))]]
    for stages in range(1, num_stages):
        row = [(float("inf"), 0)] * len(total)
        for n in range(stages + 1, len(total)):
            row[n] = min((max(best[-1][k][0], total[n] - total[k]), k) for k in range(stages, n))
        best.append(row)
    ends = [len(costs)]
    for row in reversed(best[1:]):
        ends.append(row[ends[-1]][1])
    bounds = [0, *reversed(ends)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


class Stage(nn.Module):
    """One stage: calls a function of `(model, batch)` from the state received to where the next stage begins."""

    def __init__(self, module: nn.Module, index: int, num_stages: int, blocks: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.index, self.num_stages, self.blocks = index, num_stages, tuple(blocks)
        self.function: Callable[[nn.Module, Any], Any] = lambda module, batch: None
        self.finish: Callable[[Any, MicroBatch], Any] = lambda result, item: result
        self.micro: Sequence[MicroBatch] = ()
        self.received: Tensor | None = None
        # How the state that travels, a plain tensor, becomes what the blocks see, and back.
        self.unpack: Callable[[Tensor], Tensor] = lambda state: state
        self.pack: Callable[[Tensor], Tensor] = lambda state: state

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1

    def forward(self, state: Tensor, number: Tensor) -> Any:
        """`state`: what the stage before sent; the first stage ignores it. `number` (1,): which micro-batch."""
        self.received = state
        item = self.micro[int(number.item())]
        try:
            return self.finish(self.function(self.module, item.batch), item)
        except Leave as left:
            return self.pack(left.hidden)
        finally:
            self.received = None

    def connect(self) -> None:
        """From now on the first block sees what was received. Called when the stage is sharded and ready: this comes
        before what FSDP2 does with a block's inputs."""
        if self.index > 0:
            put_in_place(self.module.get_submodule(self.blocks[0]), self.state)

    def state(self) -> Tensor:
        assert self.received is not None
        return self.unpack(self.received)

    def set(self, function: Any, micro: Sequence[MicroBatch], finish: Any = lambda result, item: result) -> None:
        self.function, self.micro, self.finish = function, micro, finish


@dataclass(frozen=True)
class Tied:
    """A parameter that stages of different workers use. The owner's is trained; the others' are copies."""

    owner: str
    stage: int  # the owner's
    copies: Mapping[int, str]  # by stage


def cut_up(module: nn.Module, worker: int, pp: int, schedule: str) -> tuple[list[Stage], list[Tied]]:
    """The stages that one worker holds, each a copy of the model in which the others' modules are elsewhere.

    Raises: PlanError where the model cannot be cut, or not so often.
    """
    names = [name for name, _ in find_blocks(module)]
    containers = {name.rpartition(".")[0] for name in names}
    if len(containers) != 1:
        raise PlanError(
            "pp needs a model whose repeated blocks follow each other in one list",
            found=f"{len(containers)} such lists" + (f": {', '.join(sorted(containers))}" if containers else ""),
            hint="dp, fsdp and accumulation work with any model",
        )
    num_stages = len(stages_of(0, pp, schedule)) * pp
    units = _units(module, names)
    costs = [sum(_cost(module.get_submodule(unit)) for unit, block in units if block == n) for n in range(len(names))]
    ranges = cut(costs, num_stages)
    stage_of_block = [index for index, blocks in enumerate(ranges) for _ in blocks]
    twins = _copy(module, _on_meta)
    stages = []
    for index in stages_of(worker, pp, schedule):
        copied = _copy(module, lambda tensor: tensor)
        foreign = [name for name, block in units if stage_of_block[block] != index]
        end = ranges[index].stop
        replace_modules(copied, twins, foreign, names[end] if end < len(names) else None)
        if index > 0:
            remove_own_parameters(copied, names)
        stages.append(Stage(copied, index, num_stages, [names[n] for n in ranges[index]]))
    stage_of = {unit: stage_of_block[block] for unit, block in units}
    return stages, [tied for tie in find_ties(module) if (tied := _tied(tie, stage_of)) is not None]


def _tied(tie: Tie, stage_of: Mapping[str, int]) -> Tied | None:
    """None where all uses lie on one stage, which holds them as any module does."""

    def stage(name: str) -> int:
        return next((index for unit, index in stage_of.items() if name.startswith(f"{unit}.")), 0)

    owner = stage(tie.owner)
    copies = {stage(alias): alias for alias in reversed(tie.aliases) if stage(alias) != owner}
    return Tied(tie.owner, owner, copies) if copies else None


def check(module: nn.Module, pp: int, schedule: str) -> None:
    """Raises: PlanError where a model, which may be on `meta`, cannot be cut so often."""
    cut_up(module, 0, pp, schedule)


def _units(module: nn.Module, blocks: Sequence[str]) -> list[tuple[str, int]]:
    """Every largest module with parameters that holds no other block, and the block that it goes with: the last one
    before it in the order in which the model names its parts."""
    found: list[tuple[str, int]] = []
    reached = 0

    def visit(name: str, parent: nn.Module) -> None:
        nonlocal reached
        for child_name, child in parent.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if full in blocks:
                reached = blocks.index(full)
            if full not in blocks and any(block.startswith(f"{full}.") for block in blocks):
                visit(full, child)
            elif any(True for _ in child.parameters()):
                found.append((full, reached))

    visit("", module)
    return found


def _cost(module: nn.Module) -> float:
    """About its share of a step's time: the numbers in its matrices, of which an embedding's are only looked up."""
    matrices = (
        parameter.numel()
        for child in module.modules()
        if not isinstance(child, nn.Embedding)
        for parameter in child.parameters(recurse=False)
        if parameter.ndim > 1
    )
    return float(sum(matrices))


def _copy(module: nn.Module, tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module with other tensors: its own, shared, or such as hold no memory."""
    tensors = [*module.parameters(), *module.buffers()]
    copied: nn.Module = copy.deepcopy(module, {id(old): tensor(old) for old in tensors})
    return copied


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

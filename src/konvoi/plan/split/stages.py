"""Which blocks each stage of a pipeline holds, and a stage itself: the model, with what it does not hold elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from konvoi.errors import PlanError
from konvoi.plan.island import TWO_STAGES
from konvoi.plan.split.blocks import find_blocks
from konvoi.plan.split.calls import Calls, calls_of
from konvoi.plan.split.elsewhere import (
    Entry,
    Leave,
    copied,
    on_meta,
    remove_own_parameters,
    replace_modules,
)
from konvoi.plan.split.parts import Tie, find_ties
from konvoi.values import MicroBatch, Objective


def stages_of(worker: int, pp: int, schedule: str) -> list[int]:
    """The stages that one worker of the axis holds.

    >>> stages_of(0, 2, "1f1b"), stages_of(0, 2, "interleaved"), stages_of(0, 2, "zbv")
    ([0], [0, 2], [0, 3])
    """
    if schedule not in TWO_STAGES:
        return [worker]
    return [worker, worker + pp if schedule == "interleaved" else 2 * pp - 1 - worker]


def cut(costs: Sequence[float], num_stages: int, places: Collection[int] | None = None) -> list[range]:
    """Which blocks each stage holds: contiguous, none empty, the costliest stage as cheap as can be. `places` are the
    blocks that a stage may begin with, where not all may.

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
            ways = (k for k in range(stages, n) if places is None or k in places)
            row[n] = min(((max(best[-1][k][0], total[n] - total[k]), k) for k in ways), default=row[n])
        best.append(row)
    ends = [len(costs)]
    for row in reversed(best[1:]):
        ends.append(row[ends[-1]][1])
    bounds = [0, *reversed(ends)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


class Stage(nn.Module):
    """One stage: calls a function of `(model, batch)` from the state received to where the next stage begins."""

    def __init__(
        self,
        module: nn.Module,
        index: int,
        num_stages: int,
        blocks: Sequence[str],
        others: Sequence[str] = (),
        flowing: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.index, self.num_stages, self.blocks, self.others = index, num_stages, tuple(blocks), tuple(others)
        # Of the first block's call `flowing` leaves are received; (): the first tensor.
        self.entry = Entry(flowing, self.state)
        self.function: Callable[[nn.Module, Any], Any] = lambda module, batch: None
        self.finish: Callable[[Any, MicroBatch], Any] = lambda result, item: result
        self.micro: Sequence[MicroBatch] = ()
        self.received: tuple[Tensor, ...] = ()
        # How the state that travels, a plain tensor, becomes what the blocks see, and back.
        self.unpack: Callable[[Tensor], Tensor] = lambda state: state
        self.pack: Callable[[Tensor], Tensor] = lambda state: state

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1

    def forward(self, *state: Tensor, number: Tensor) -> Any:
        """`state`: what the stage before sent; the first stage ignores it. `number` (1,): which micro-batch."""
        self.received = state
        item = self.micro[int(number.item())]
        try:
            return self.finish(self.function(self.module, item.batch), item)
        except Leave as left:
            # What only passes through is copied: a schedule takes what it sends out of the graph, in place.
            sent = [self.pack(self.entry.actual(one)) for one in left.state]
            return tuple((one.clone() if any(one is two for two in state) else one).contiguous() for one in sent)
        finally:
            self.received, self.entry.pairs = (), []

    def connect(self) -> None:
        """From now on the first block sees what was received. Called when the stage is sharded and ready: this comes
        before what FSDP2 does with a block's inputs."""
        if self.index > 0:
            self.entry.watch([self.module.get_submodule(name) for name in (*self.blocks, *self.others)])

    def state(self) -> tuple[Tensor, ...]:
        return tuple(self.unpack(one) for one in self.received)

    def set(self, function: Any, micro: Sequence[MicroBatch], finish: Any = lambda result, item: result) -> None:
        self.function, self.micro, self.finish = function, micro, finish


@dataclass(frozen=True)
class Tied:
    """A parameter that stages of different workers use. The owner's is trained; the others' are copies."""

    owner: str
    stage: int  # the owner's
    copies: Mapping[int, str]  # by stage


def cut_up(
    module: nn.Module, worker: int, pp: int, schedule: str, objective: Objective | None = None, example: Any = None
) -> tuple[list[Stage], list[Tied]]:
    """The stages that one worker holds, each a copy of the model in which the others' modules are elsewhere.

    The blocks follow each other as the model calls them for `example`, a batch; without one, or where that cannot be
    found out, as it names them. Raises: PlanError where the model cannot be cut, or not so often.
    """
    names = [name for name, _ in find_blocks(module)]
    parts = _parts(module, names)
    calls = calls_of(module, objective, example, parts, names) if objective and example is not None else None
    names, blocks_of, places = _in_order(names, parts, calls)
    num_stages = len(stages_of(0, pp, schedule)) * pp
    cost_of = _costs(module, parts, names, calls)
    costs = [sum(cost_of[part] for part in parts if blocks_of[part] == n) for n in range(len(names))]
    if calls and places is not None and 1 + len(places) < num_stages <= len(names):
        raise _too_few_places(names, parts, calls, places, num_stages)
    ranges = cut(costs, num_stages, places)
    stage_of_block = [index for index, blocks in enumerate(ranges) for _ in blocks]
    stage_of = {part: stage_of_block[blocks_of[part]] for part in parts}
    flowing = calls.flowing if calls else {}
    twins = copied(module, on_meta)
    stages = []
    for index in stages_of(worker, pp, schedule):
        own = copied(module, lambda tensor: tensor)
        end = ranges[index].stop
        exits = {names[end]: flowing.get(names[end], ())} if end < len(names) else {}
        replace_modules(own, twins, [part for part in parts if stage_of[part] != index], names, exits)
        if index > 0:
            remove_own_parameters(own, names)
        held = [names[n] for n in ranges[index]]
        others = [part for part in parts if stage_of[part] == index and part not in names]
        stages.append(Stage(own, index, num_stages, held, others, flowing.get(held[0], ())))
    return stages, [tied for tie in find_ties(module) if (tied := _tied(tie, stage_of)) is not None]


def _in_order(
    names: Sequence[str], parts: Sequence[str], calls: Calls | None
) -> tuple[list[str], dict[str, int], list[int] | None]:
    """The blocks as they follow each other, the block that each part goes with, and where stages may begin.

    A part goes with the last block before it. Raises: PlanError.
    """
    containers = {name.rpartition(".")[0] for name in names}
    if not containers or (len(containers) > 1 and calls is None):
        raise PlanError(
            "pp needs a model whose repeated blocks follow each other in one list",
            found=f"{len(containers)} such lists" + (f": {', '.join(sorted(containers))}" if containers else ""),
            hint="dp, fsdp and accumulation work with any model",
        )
    if calls is None:
        reached, blocks_of = 0, {}
        for part in parts:
            reached = names.index(part) if part in names else reached
            blocks_of[part] = reached
        return list(names), blocks_of, None
    again = [name for name in names if len(calls.moments.get(name, ())) > 1]
    if again:
        raise PlanError(
            "pp needs blocks that are called once in a forward pass",
            found=f"{again[0]}: {len(calls.moments[again[0]])} times",
            hint="dp, fsdp and tp work with any model",
        )
    begins: dict[str, int] = {}
    latest = -1
    for name in names:  # one that is never called stays where it is named
        latest = first if (first := calls.first(name)) is not None else latest
        begins[name] = latest
    ordered = sorted(names, key=lambda name: begins[name])
    blocks_of = {}
    for part in parts:
        moment = calls.first(part)
        before = [n for n, name in enumerate(ordered) if moment is not None and begins[name] <= moment]
        blocks_of[part] = ordered.index(part) if part in ordered else max(before, default=0)
    # No stage begins where a part that was called before is called again.
    spans = {part: (calls.moments[part][0], calls.moments[part][-1]) for part in parts if part in calls.moments}
    places = [
        n
        for n in range(1, len(ordered))
        if not any(first < begins[ordered[n]] <= last for first, last in spans.values())
        and calls.leak(ordered[n]) is None
    ]
    return ordered, blocks_of, places


def _too_few_places(
    names: Sequence[str], parts: Sequence[str], calls: Calls, places: Sequence[int], num_stages: int
) -> PlanError:
    found = f"{1 + len(places)} stages at most, not {num_stages}"
    for block in names[1:]:
        if leak := calls.leak(block):
            return PlanError(
                f"no stage can begin at {block}: more than what it takes is needed behind it",
                found=f"{leak} uses what came before; {found}",
                hint="put norms and sums around a block inside of it, so that blocks hand on all there is",
            )
    again = [part for part in parts if len(calls.moments.get(part, ())) > 1]
    return PlanError(
        "no stage can begin between two calls of one part",
        found=f"{again[0]} is called again behind blocks: {found}",
        hint="fewer stages, or a part of its own for each place",
    )


def _tied(tie: Tie, stage_of: Mapping[str, int]) -> Tied | None:
    """None where all uses lie on one stage, which holds them as any module does."""

    def stage(name: str) -> int:
        return next((index for unit, index in stage_of.items() if name.startswith(f"{unit}.")), 0)

    owner = stage(tie.owner)
    copies = {stage(alias): alias for alias in reversed(tie.aliases) if stage(alias) != owner}
    return Tied(tie.owner, owner, copies) if copies else None


def _parts(module: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Every largest module with parameters that holds no other block, blocks included, as the model names them."""
    found: list[str] = []

    def visit(name: str, parent: nn.Module) -> None:
        for child_name, child in parent.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if full not in blocks and any(block.startswith(f"{full}.") for block in blocks):
                visit(full, child)
            elif any(True for _ in child.parameters()):
                found.append(full)

    visit("", module)
    return found


def _costs(module: nn.Module, parts: Sequence[str], blocks: Sequence[str], calls: Calls | None) -> dict[str, float]:
    """About each part's share of a step's time: its operations, counted as the model calls it; where that shows none
    for a block, the numbers in its matrices. Not measured: each worker, and each run, must come to the same."""
    if calls and all(calls.operations.get(name) for name in blocks if name in calls.moments):
        return {part: float(calls.operations.get(part, 0)) for part in parts}
    return {part: float(_numbers(module.get_submodule(part))) for part in parts}


def _numbers(module: nn.Module) -> int:
    """In its matrices; an embedding's are only looked up."""
    owners = (child for child in module.modules() if not isinstance(child, nn.Embedding))
    return sum(p.numel() for owner in owners for p in owner.parameters(recurse=False) if p.ndim > 1)

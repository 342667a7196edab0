"""In which order a model calls its parts, and what flows from block to block: found by running it without its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from konvoi.plan.split.elsewhere import Elsewhere, copied, on_meta, remove_own_parameters
from konvoi.values import Objective


@dataclass
class Calls:
    """Moments are numbered from 0; a part that is not called has none."""

    moments: dict[str, list[int]] = field(default_factory=dict)  # by name of part
    # By block: which of its arguments' leaves depend on parameters, and so come from the stage before.
    flowing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # By part: floating-point operations of its matrices, convolutions and attention, forward, for the example.
    operations: dict[str, int] = field(default_factory=dict)
    # As nodes of autograd's graph: what each call takes, and at the end the loss; what it answers; a block's `flowing`.
    taken: list[tuple[str, list[Node]]] = field(default_factory=list)
    answered: list[list[Node]] = field(default_factory=list)
    inlets: dict[str, set[Node]] = field(default_factory=dict)

    def first(self, name: str) -> int | None:
        return self.moments[name][0] if name in self.moments else None

    def leak(self, block: str) -> str | None:
        """What is called at or behind this block and needs more of what was before than flows into it: no stage can
        begin here."""
        if (begin := self.first(block)) is None:
            return None
        known = {*self.inlets[block], *(node for answer in self.answered[begin:] for node in answer)}
        for name, nodes in self.taken[begin:]:
            if any(_is_source(node) for node in _behind(nodes, known)):
                return name
        return None


class Heard(Elsewhere):
    """Stands for a part, and writes down when it is called and with what."""

    def __init__(self, twin: nn.Module, name: str, calls: Calls, *, is_block: bool) -> None:
        super().__init__(twin, is_block=is_block)
        self.name, self.calls = name, calls
        self.operations = 0  # of a call of the shapes that were looked at last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        moment = sum(map(len, self.calls.moments.values()))
        self.calls.moments.setdefault(self.name, []).append(moment)
        leaves, _ = tree_flatten((args, kwargs))
        flowing = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if self.is_block:
            self.calls.flowing.setdefault(self.name, tuple(flowing))
            self.calls.inlets.setdefault(self.name, set(_nodes(leaves)))
        self.calls.taken.append((self.name, _nodes(leaves)))
        answer = tree_map(_marked, super().forward(*args, **kwargs))
        self.calls.operations[self.name] = self.calls.operations.get(self.name, 0) + self.operations
        self.calls.answered.append(_nodes(tree_flatten(answer)[0]))
        return answer

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.operations = 0  # where it cannot run on `meta`, not half of it
        with FlopCounterMode(display=False) as counter:
            found = super()._ask(args, kwargs)
        self.operations = counter.get_total_flops()
        return found


def calls_of(
    module: nn.Module, objective: Objective, example: Any, parts: Sequence[str], blocks: Sequence[str]
) -> Calls | None:
    """None where the model's own code cannot run without its parts, whose answers have no numbers."""
    calls, twins, glue = Calls(), copied(module, on_meta), copied(module, _on_cpu)
    for name in parts:
        path, _, leaf = name.rpartition(".")
        heard = Heard(twins.get_submodule(name), name, calls, is_block=name in blocks)
        setattr(glue.get_submodule(path), leaf, heard)
    for owner, leaf in remove_own_parameters(glue, parts):
        owner.__dict__[leaf].requires_grad_(True)
    try:
        with torch.enable_grad():
            loss_sum, _ = objective(glue, example)
    except Exception:  # whatever a model does with numbers that are not there
        return None
    calls.taken.append(("the objective", _nodes([loss_sum])))
    return calls


def _nodes(leaves: Sequence[Any]) -> list[Node]:
    return [get_gradient_edge(leaf).node for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def _behind(nodes: Sequence[Node], known: set[Node]) -> Iterator[Node]:
    """All that these were computed from, but for what is known and what that was computed from."""
    waiting, seen = list(nodes), set(known)
    while waiting:
        if (node := waiting.pop()) not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions if before is not None]


def _is_source(node: Node) -> bool:
    return not node.next_functions


def _marked(leaf: Any) -> Any:
    """What comes from parameters, frozen ones too, can be told by asking for a gradient."""
    return leaf.requires_grad_(True) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _on_cpu(tensor: Tensor) -> Tensor:
    """Parts bring no memory; what is left, small buffers of the model's own, is filled with zeros on `meta`."""
    if isinstance(tensor, nn.Parameter):
        return on_meta(tensor)
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()

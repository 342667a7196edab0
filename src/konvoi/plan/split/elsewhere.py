"""What a pipeline's stage does not hold: modules that stand for those of other stages, so that the model stays itself.

Every stage runs the model's own code from the start: masks, positions and rotary tables come from it. Where that code
calls a module of another stage, an `Elsewhere` answers with NaN in the right structure, shapes and types: no number of
it can reach the loss unseen. (Integers, which know no NaN and which modules with weights hardly return, are zero.) At a
stage's first block the state that the stage before has sent is put in its place; at the first block behind the stage,
the code is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

PLAIN = (int, float, bool, str, type(None))


class Leave(Exception):
    """Control flow: the stage's work is done; `state` is what the next one needs."""

    def __init__(self, state: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.state = state


class Elsewhere(nn.Module):
    """Stands for a module that another stage holds. `twin`, on `meta`, tells what its output would look like; a block
    whose twin cannot run there, as one that looks at numbers, gives what it takes.

    At the exit of a stage `flowing` says which leaves of the call are its state; () where only the first tensor is.
    """

    def __init__(self, twin: nn.Module, *, is_block: bool = False, flowing: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.__dict__["twin"] = twin  # not registered: its parameters are not this worker's
        self.is_block, self.flowing = is_block, flowing
        self.known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        # Models read the fields of their parts, such as a layer's kind of attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["twin"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if self.flowing is not None:
            raise Leave(tuple(leaves[n] for n in self.flowing or (first_tensor(args, kwargs),)))
        key = (str(structure), *(_looks(leaf) for leaf in leaves))
        if key not in self.known:
            self.known[key] = self._look(args, kwargs)
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
        return tree_map(lambda leaf: _nan_like(leaf, device), self.known[key])

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        meta_args, meta_kwargs = tree_map(_to_meta, (args, kwargs))
        try:
            return self._ask(meta_args, meta_kwargs)
        except Exception:
            if not self.is_block:
                raise
            leaves, _ = tree_flatten((meta_args, meta_kwargs))
            return leaves[first_tensor(meta_args, meta_kwargs)]

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return self.twin(*args, **kwargs)


class Entry:
    """What a stage has received, in the place of what stands for it in the model's own code.

    The first block's call shows which tensors those are; the code may hand some of them, as an encoder's output, to
    later blocks, too.
    """

    def __init__(self, flowing: tuple[int, ...], received: Callable[[], tuple[Tensor, ...]]) -> None:
        self.flowing, self.received = flowing, received
        self.pairs: list[tuple[Any, Tensor]] = []  # what stands there, and what was received

    def watch(self, parts: Sequence[nn.Module]) -> None:
        """The first of these is the stage's first block."""
        for number, part in enumerate(parts):
            replace = self._begin if number == 0 else self._go_on
            part.register_forward_pre_hook(replace, prepend=True, with_kwargs=True)

    def actual(self, leaf: Any) -> Any:
        return next((received for stand_in, received in self.pairs if leaf is stand_in), leaf)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        places = self.flowing or (first_tensor(args, kwargs),)
        self.pairs = [(leaves[n], state) for n, state in zip(places, self.received(), strict=True)]
        for stand_in, state in self.pairs:
            if _can_become(stand_in, state):  # what the code around the blocks does with it later, as `x + block(x)`
                stand_in.copy_(state)
        return tree_unflatten([self.actual(leaf) for leaf in leaves], structure)

    def _go_on(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tree_map(self.actual, (args, kwargs))


def replace_modules(
    root: nn.Module,
    twins: nn.Module,
    foreign: Collection[str],
    blocks: Collection[str],
    exits: Mapping[str, tuple[int, ...]],
) -> None:
    """Put an `Elsewhere` in the place of each foreign module; where one of `exits` is called, the stage ends."""
    for name in foreign:
        parent_name, _, leaf = name.rpartition(".")
        parent = root.get_submodule(parent_name)
        twin = twins.get_submodule(name)
        setattr(parent, leaf, Elsewhere(twin, is_block=name in blocks, flowing=exits.get(name)))


def remove_own_parameters(root: nn.Module, blocks: Collection[str]) -> list[tuple[nn.Module, str]]:
    """Parameters that a module around the blocks holds itself belong to the first stage; elsewhere they are NaN.

    Returns where they were.
    """
    found = []
    for name, module in root.named_modules():
        if any(block.startswith(f"{name}." if name else "") for block in blocks) and not isinstance(module, Elsewhere):
            for leaf, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[leaf]
                    module.__dict__[leaf] = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype)
                    found.append((module, leaf))
    return found


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Which leaf of a call is its first tensor: what flows from block to block, where nothing else is known."""
    leaves, _ = tree_flatten((args, dict(kwargs)))
    return next(n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor))


def copied(module: nn.Module, tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module with other tensors: its own, shared, or such as hold no memory."""
    tensors = [*module.parameters(), *module.buffers()]
    found: nn.Module = copy.deepcopy(module, {id(old): tensor(old) for old in tensors})
    return found


def on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _can_become(stand_in: Tensor, state: Tensor) -> bool:
    same = type(stand_in) is type(state) and (stand_in.shape, stand_in.dtype) == (state.shape, state.dtype)
    return same and stand_in.is_contiguous() and not stand_in.requires_grad


def _looks(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, PLAIN) else id(type(leaf))


def _to_meta(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") if isinstance(leaf, Tensor) else leaf


def _nan_like(leaf: Any, device: torch.device) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    fill = torch.nan if leaf.is_floating_point() else 0
    return torch.full(leaf.shape, fill, dtype=leaf.dtype, device=device)

"""What a pipeline's stage does not hold: modules that stand for those of other stages, so that the model stays itself.

Every stage runs the model's own code from the start: masks, positions and rotary tables come from it. Where that code
calls a module of another stage, an `Elsewhere` answers with NaN in the right structure, shapes and types: no number of
it can reach the loss unseen. (Integers, which know no NaN and which modules with weights hardly return, are zero.) At a
stage's first block the state that the stage before has sent is put in its place; at the first block behind the stage,
the code is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

PLAIN = (int, float, bool, str, type(None))


class Leave(Exception):
    """Control flow: the stage's work is done; `hidden` is what the next one needs."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Elsewhere(nn.Module):
    """Stands for a module that another stage holds. `twin`, on `meta`, tells what its output would look like."""

    def __init__(self, twin: nn.Module, *, is_exit: bool = False) -> None:
        super().__init__()
        self.__dict__["twin"] = twin  # not registered: its parameters are not this worker's
        self.is_exit = is_exit
        self.known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        # Models read the fields of their parts, such as a layer's kind of attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["twin"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_exit:
            raise Leave(hidden_of(args, kwargs))
        leaves, structure = tree_flatten((args, kwargs))
        key = (str(structure), *(_look(leaf) for leaf in leaves))
        if key not in self.known:
            with torch.no_grad():
                meta_args, meta_kwargs = tree_map(_to_meta, (args, kwargs))
                self.known[key] = self.twin(*meta_args, **meta_kwargs)
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
        return tree_map(lambda leaf: _nan_like(leaf, device), self.known[key])


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What flows from block to block: the first tensor of a call."""
    found: Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return found


def put_in_place(block: nn.Module, received: Callable[[], Tensor]) -> None:
    """Whatever a block is called with, it sees what `received` returns as its first tensor."""

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args and isinstance(args[0], Tensor):
            return (received(), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, kwargs | {name: received()}

    block.register_forward_pre_hook(replace, prepend=True, with_kwargs=True)


def replace_modules(root: nn.Module, twins: nn.Module, foreign: Collection[str], exit_at: str | None) -> None:
    """Put an `Elsewhere` in the place of each foreign module; the one named `exit_at` is where the stage ends."""
    for name in foreign:
        parent_name, _, leaf = name.rpartition(".")
        parent = root.get_submodule(parent_name)
        setattr(parent, leaf, Elsewhere(twins.get_submodule(name), is_exit=name == exit_at))


def remove_own_parameters(root: nn.Module, blocks: Collection[str]) -> None:
    """Parameters that a module around the blocks holds itself belong to the first stage; elsewhere they are NaN."""
    for name, module in root.named_modules():
        if any(block.startswith(f"{name}." if name else "") for block in blocks) and not isinstance(module, Elsewhere):
            for leaf, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[leaf]
                    module.__dict__[leaf] = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype)


def _look(leaf: Any) -> Any:
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

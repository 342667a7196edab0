"""The repeated blocks of a model: the units of sharding, compiling and recomputing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def find_blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The items of every outermost list or sequence of two or more modules of the same class, by name.

    >>> [name for name, _ in find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))]
    ['0', '1']
    >>> find_blocks(nn.Linear(2, 2))
    []
    """
    found: list[tuple[str, nn.Module]] = []

    def visit(name: str, parent: nn.Module) -> None:
        for child_name, child in parent.named_children():
            full = f"{name}.{child_name}" if name else child_name
            siblings = [other for other in parent.children() if type(other) is type(child)]
            if (
                isinstance(parent, (nn.ModuleList, nn.Sequential))
                and len(siblings) > 1
                and any(True for _ in child.parameters())
            ):
                found.append((full, child))
            else:
                visit(full, child)

    visit("", module)
    return found


def recompute(blocks: Sequence[nn.Module], within: Callable[[], AbstractContextManager[Any]] | None = None) -> None:
    """Recompute each block's inside during the backward pass (arXiv 1604.06174), `within` what is not there by then.

    Names of parameters stay.
    """
    contexts: dict[str, Any] = {}
    if within is not None:
        contexts["context_fn"] = lambda: (contextlib.nullcontext(), within())
    for block in blocks:
        # The block's forward is replaced rather than the block wrapped: a wrapper would change every parameter's name.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **contexts)


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """torch.compile each block in place: one compilation serves them all, as they are of one class."""
    compiled = torch.compile(_call)
    for block in blocks:
        # Not `block.compile()`: it skips, in silence, blocks of torch's own classes (nn.Sequential,
        # nn.TransformerEncoderLayer) and those that are recomputed.
        block.forward = functools.partial(compiled, block.forward)


def _call(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)

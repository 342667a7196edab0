"""From a model's recipe to its weights, the same for every plan and never whole on one worker where that can be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from konvoi import devices
from konvoi.errors import JobError
from konvoi.plan.split.parts import find_ties, retie
from konvoi.values import InitializesByName, ModelRecipe


def key(seed: int, name: str) -> int:
    """A generator's seed for one name: independent of order and of what else the model has.

    >>> key(0, "blocks.0") == key(0, "blocks.0"), key(0, "blocks.0") == key(1, "blocks.0")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()) >> 1


def build(model: Any, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module: on `meta` where it can fill itself in by name, else whole with its weights.

    `model` is a ready-made recipe, any callable that makes a module, or a module. Raises: JobError.
    """
    if isinstance(model, nn.Module):
        return _cast(model, dtype).to(device)
    if isinstance(model, ModelRecipe):
        with torch.device("meta"):
            module = model()
        if isinstance(module, InitializesByName):
            return _cast(module, dtype)
    with devices.seeded(key(seed, "model")):
        module = model()
    if not isinstance(module, nn.Module):
        raise JobError(
            "the model's callable does not return a module", found=type(module).__name__, expected="torch.nn.Module"
        )
    return _cast(module, dtype).to(device)


def materialize(
    module: nn.Module,
    seed: int,
    device: torch.device,
    units: list[tuple[str, nn.Module]],
    shard: Callable[[nn.Module], None],
    cut: Callable[[str, nn.Module], None] = lambda name, module: None,
) -> None:
    """Fill in and shard one unit after the other, the root last. Only one unit is whole at a time.

    `cut(name, module)` is called for each module when what it owns itself is filled in.
    """
    ties = find_ties(module)
    names = {child: name for name, child in module.named_modules()}
    done: set[nn.Module] = set()
    for _, unit in units:
        for child in unit.modules():
            if child not in done:
                done.add(child)
                if child in names:  # not what wraps the root
                    _fill(module, names[child], child, seed, device)
                    cut(names[child], child)
        if unit is module:
            retie(module, ties)
        shard(unit)


def _fill(root: nn.Module, name: str, module: nn.Module, seed: int, device: torch.device) -> None:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if not any(tensor.is_meta for tensor in own):
        module._buffers.update({name: b.to(device) for name, b in module.named_buffers(recurse=False)})
        return
    assert isinstance(root, InitializesByName)
    _make_room(module, device)
    generator = torch.Generator(device).manual_seed(key(seed, name))
    with torch.no_grad():
        root.init_module(name, module, generator)


def _make_room(module: nn.Module, device: torch.device) -> None:
    """`to_empty` for what the module itself owns; torch's own takes half a second at its first call from `meta`."""
    for name, parameter in module.named_parameters(recurse=False):
        room = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        module.register_parameter(name, nn.Parameter(room, requires_grad=parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        room = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        module._buffers[name] = room if buffer.is_meta else buffer.to(device)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module if dtype is torch.float32 else module.to(dtype)

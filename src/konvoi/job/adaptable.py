"""Which parts of a model can have adapters."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from konvoi.errors import JobError

if TYPE_CHECKING:
    from torch import nn


def is_matrix(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) or is_transposed(module)


def is_read(root: nn.Module, name: str) -> bool:
    """Whether the module around a matrix reads its weight and never calls it, so that an adapter would not be heard."""
    parent = type(root.get_submodule(name.rpartition(".")[0])).__name__ if name else ""
    return name.endswith("out_proj") and (parent == "MultiheadAttention" or "Mamba" in parent)


def check_not_shared(module: nn.Module, names: Collection[str]) -> None:
    """Raises: JobError for a module whose weight another uses, too: it could neither be merged nor saved alone."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for found in owners.values():
        if len(found) > 1 and any(one.startswith(f"{name}." if name else "") for one in found for name in names):
            raise JobError("lora: this weight is used in two places", found=" and ".join(found), hint="leave it out")


def is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers: (in, out)


def matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(f".{name}", f"*.{pattern}")

"""Weights as safetensors: raw buffers with a checked header, nothing that is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Tied tensors are written once, under the first of their names, as the format wants it."""
    seen: set[int] = set()
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            whole[name] = tensor.detach().contiguous().cpu()
    save_file(whole, path, metadata={"format": "pt"})


def read(path: Path) -> dict[str, Tensor]:
    return load_file(path)

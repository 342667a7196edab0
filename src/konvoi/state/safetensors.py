"""Weights as safetensors: raw buffers with a checked header, nothing that is executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import torch as files
from torch import Tensor


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Tied tensors are written once, under the first of their names, as the format wants it."""
    files.save_file(_whole(state), path, metadata={"format": "pt"})


def as_bytes(state: Mapping[str, Tensor]) -> bytes:
    return files.save(_whole(state), metadata={"format": "pt"})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    return files.load(data)


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            whole[name] = tensor.detach().contiguous().cpu()
    return whole


def write_sharded(folder: Path, shards: Sequence[tuple[int, Callable[[], Mapping[str, Tensor]]]]) -> None:
    """`model.safetensors`; or of several shards, each with its size in bytes, one file each and transformers' index.
    Only one shard is in memory at a time."""
    if len(shards) == 1:
        write(folder / "model.safetensors", shards[0][1]())
        return
    places: dict[str, str] = {}
    for number, (_, load) in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        state = load()
        write(folder / name, state)
        places |= dict.fromkeys(state, name)
    index = {"metadata": {"total_size": sum(size for size, _ in shards)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def read(path: Path) -> dict[str, Tensor]:
    return files.load_file(path)

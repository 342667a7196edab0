"""save_pretrained: a trained model as safetensors and a config, which `transformers` loads where it knows the model."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import ConfigError
from konvoi.job.models.gpt import GPT
from konvoi.job.models.hf import HF
from konvoi.state.record import Record

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000  # transformers' own limit of a file


def save_pretrained(run: str | Path, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the newest weights (averaged, where the job keeps an average), `config.json`, and the tokenizer's file.

    A `models.gpt` has the Llama layout, a `models.hf` its own. Files hold at most `shard_bytes` (or one tensor), and no
    more than one file's tensors are in memory at a time. Raises: StateError for no run or no checkpoint; ConfigError.
    """
    from konvoi.job.models.llama_names import llama_config, llama_name
    from konvoi.state import shards
    from konvoi.state.safetensors import write_sharded
    from konvoi.trained import newest

    if shard_bytes < 1:
        raise ConfigError("shard_bytes is above zero", found=shard_bytes)
    record, folder = Record(Path(run)), Path(folder)
    task = record.task()
    model = task.prepared.job.model
    _, path = newest(record)
    renamed = llama_name if isinstance(model, GPT) else str

    def load(names: list[str]) -> dict[str, Tensor]:
        found = shards.read_whole(path, "model.", names) | shards.read_whole(path, "ema.", names)
        return {renamed(name): found[name] for name in names}

    folder.mkdir(parents=True, exist_ok=True)
    groups = _grouped(shards.sizes(path, "model."), shard_bytes)
    write_sharded(folder, [(size, partial(load, names)) for size, names in groups])
    if isinstance(model, GPT):
        config: dict[str, Any] = llama_config(model)
    elif isinstance(model, HF):
        config = model.full_config()
    else:
        config = {
            "konvoi_model": repr(model),
            **(dataclasses.asdict(model) if dataclasses.is_dataclass(model) and not isinstance(model, type) else {}),
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    tokenizer = task.prepared.splits.spec.tokenizer
    if tokenizer not in (None, "bytes"):
        (folder / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    return folder


def _grouped(sizes: dict[str, int], most: int) -> list[tuple[int, list[str]]]:
    """Names in their order, cut into runs of at most so many bytes.

    >>> _grouped({"a": 3, "b": 3, "c": 9}, 6)
    [(6, ['a', 'b']), (9, ['c'])]
    """
    groups: list[tuple[int, list[str]]] = []
    for name, size in sizes.items():
        if not groups or groups[-1][0] + size > most:
            groups.append((0, []))
        total, names = groups[-1]
        groups[-1] = (total + size, [*names, name])
    return groups

"""save_pretrained: a trained model as safetensors and a config, which `transformers` loads where it knows the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import ConfigError
from konvoi.job.adapt import Adapted, LoRA, merged, write_adapter
from konvoi.job.models.gpt import GPT
from konvoi.job.models.hf import HF
from konvoi.state.record import Record
from konvoi.values import base_name, is_adapter

if TYPE_CHECKING:
    from torch import Tensor

Load = Callable[[list[str]], dict[str, "Tensor"]]

SHARD_BYTES = 5_000_000_000  # transformers' own limit of a file


def save_pretrained(
    run: str | Path, folder: str | Path, *, shard_bytes: int = SHARD_BYTES, merge: bool = False
) -> Path:
    """Write the newest weights (averaged, where the job keeps an average), `config.json`, and the tokenizer's file.

    A `models.gpt` has the Llama layout, a `models.hf` its own. Files hold at most `shard_bytes` (or one tensor), and no
    more than one file's tensors are in memory at a time. Of a job with adapters, these alone in PEFT's layout; or with
    `merge` the model with them added to its matrices, which is in memory meanwhile. Raises: StateError for no run or no
    checkpoint; ConfigError.
    """
    from konvoi.job.models.llama_names import llama_name
    from konvoi.state.safetensors import write_sharded
    from konvoi.trained import newest

    if shard_bytes < 1:
        raise ConfigError("shard_bytes is above zero", found=shard_bytes)
    record, folder = Record(Path(run)), Path(folder)
    job = record.task().prepared.job
    if merge and job.adapt is None:
        raise ConfigError("there is nothing to merge", found=f"{record.folder}, a run without adapters")
    model = job.model.base if isinstance(job.model, Adapted) else job.model
    _, path = newest(record)
    renamed = llama_name if isinstance(model, GPT) else str
    folder.mkdir(parents=True, exist_ok=True)
    if job.adapt is not None and not merge:
        _write_adapter(job.model.lora, model, path, folder)
        return folder
    sizes, load = _merged(record) if merge else _stored(path)

    def load_renamed(names: list[str]) -> dict[str, Tensor]:
        return {renamed(name): tensor for name, tensor in load(names).items()}

    write_sharded(folder, [(size, partial(load_renamed, names)) for size, names in _grouped(sizes, shard_bytes)])
    _write_config(model, folder)
    tokenizer = record.task().prepared.splits.spec.tokenizer
    if tokenizer not in (None, "bytes"):
        (folder / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    return folder


def _stored(checkpoint: Path) -> tuple[dict[str, int], Load]:
    """Bytes of every tensor by name, and what reads some of them."""
    from konvoi.state import shards

    def load(names: list[str]) -> dict[str, Tensor]:
        return shards.read_whole(checkpoint, "model.", names) | shards.read_whole(checkpoint, "ema.", names)

    return shards.sizes(checkpoint, "model."), load


def _merged(record: Record) -> tuple[dict[str, int], Load]:
    from konvoi.trained import load_model

    state = merged(load_model(record))
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    return sizes, lambda names: {name: state[name] for name in names}


def _write_adapter(lora: LoRA, model: Any, checkpoint: Path, folder: Path) -> None:
    from konvoi.job.models.llama_names import llama_module
    from konvoi.state.checkpoint import facts_of
    from konvoi.state.safetensors import write

    names = [base_name(name).split(".") for name in facts_of(checkpoint)["shapes"] if not is_adapter(name)]
    sizes, load = _stored(checkpoint)
    base = str(model.source) if isinstance(model, HF) and isinstance(model.source, (str, Path)) else None
    state = write_adapter(
        folder,
        lora,
        load([name for name in sizes if lora.saves(name)]),
        {".".join(name[:length]) for name in names for length in range(1, len(name))},
        rename=llama_module if isinstance(model, GPT) else str,
        base=base,
        kind="CAUSAL_LM" if isinstance(model, GPT) else model.peft_kind() if isinstance(model, HF) else None,
    )
    write(folder / "adapter_model.safetensors", state)


def _write_config(model: Any, folder: Path) -> None:
    from konvoi.job.models.llama_names import llama_config

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

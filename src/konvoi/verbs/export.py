"""save_pretrained: a trained model as safetensors and a config, which `transformers` loads where it knows the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from konvoi.job.models.gpt import GPT
from konvoi.state.record import Record


def save_pretrained(run: str | Path, folder: str | Path) -> Path:
    """Write `model.safetensors` and `config.json` (and the tokenizer's file). A `models.gpt` has the Llama layout.

    Raises: StateError for no run or no checkpoint.
    """
    from konvoi.job.models.llama_names import llama_config, llama_name
    from konvoi.state.safetensors import write
    from konvoi.trained import load_model

    record, folder = Record(Path(run)), Path(folder)
    task = record.task()
    model = task.prepared.job.model
    state = load_model(record).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, GPT):
        config: dict[str, Any] = llama_config(model)
        state = {llama_name(name): tensor for name, tensor in state.items()}
    else:
        config = {
            "konvoi_model": repr(model),
            **(dataclasses.asdict(model) if dataclasses.is_dataclass(model) and not isinstance(model, type) else {}),
        }
    write(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    tokenizer = task.prepared.splits.spec.tokenizer
    if tokenizer not in (None, "bytes"):
        (folder / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    return folder

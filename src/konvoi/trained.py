"""A trained model in this process: the newest checkpoint of a run, whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from konvoi.errors import CheckpointMismatch, StateError
from konvoi.job.job import Job
from konvoi.learner import check_same_model, shapes_of
from konvoi.plan.split.materialize import build, materialize
from konvoi.population.keeping import path_of_finetuned
from konvoi.state import checkpoint, safetensors, shards
from konvoi.state.record import Record, whole_checkpoints


def newest(record: Record) -> tuple[int, Any]:
    """The newest whole checkpoint's step and path. Raises: StateError where there is none."""
    whole = whole_checkpoints(record.checkpoints)
    if not whole:
        raise StateError(
            "this run has no checkpoint yet", found=record.folder, hint="it is written during training and at its end"
        )
    return whole[-1]


def load_model(record: Record, dtype: torch.dtype = torch.float32, client: int | None = None) -> nn.Module:
    """The module with the weights that the run ended with (averaged, where the job keeps an average), on the CPU; or
    as a simulated client has fine-tuned them.

    Raises: StateError, CheckpointMismatch.
    """
    job = record.task().prepared.job
    _, path = newest(record)
    facts = checkpoint.facts_of(path)
    device = torch.device("cpu")
    module = build(job.model, job.seed, device, dtype)
    check_same_model(facts["shapes"], shapes_of(module))
    materialize(module, job.seed, device, [("", module)], lambda unit: None)
    module.load_state_dict(shards.read_whole(path, "model.") | shards.read_whole(path, "ema."), strict=False)
    if client is not None:
        module.load_state_dict(_finetuned(record, client), strict=False)
    return module.eval()


def _finetuned(record: Record, client: int) -> dict[str, torch.Tensor]:
    path = path_of_finetuned(record.folder, client)
    if not path.exists():
        hint = "kv.fedavg(finetune=2), and kv.fleet.simulated(..., holdout=0.2, keep_finetuned=True)"
        raise StateError("this run keeps nothing that this client has fine-tuned", found=f"client {client}", hint=hint)
    return safetensors.read(path)


def check_resumable(job: Job, record: Record) -> None:
    """What can be known of a resumption before a worker starts: the checkpoint is whole, and the model is its own.

    Raises: StateError, CheckpointMismatch with the differences by name.
    """
    _, path = newest(record)
    check_same_model(checkpoint.facts_of(path)["shapes"], shapes_of(_outline(job.model)))
    before = record.task().prepared.job.adapt
    if job.adapt != before:
        raise CheckpointMismatch("this checkpoint is of other adapters", found=repr(before), expected=repr(job.adapt))


def _outline(model: Any) -> nn.Module:
    """The module, without memory where that can be."""
    if isinstance(model, nn.Module):
        return model
    try:
        with torch.device("meta"):
            return model()  # type: ignore[no-any-return]
    except Exception:
        # A callable that reads weights or looks at values cannot be built on `meta`: build it as the workers do.
        return build(model, 0, torch.device("cpu"), torch.float32)

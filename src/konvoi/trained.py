"""A trained model in this process: the newest checkpoint of a run, whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from konvoi.errors import StateError
from konvoi.job.job import Job
from konvoi.learner import check_same_model, meta_shapes
from konvoi.plan.split.materialize import build, materialize
from konvoi.state import checkpoint, shards
from konvoi.state.record import Record


def newest(record: Record) -> tuple[int, Any]:
    """The newest whole checkpoint's step and path. Raises: StateError where there is none."""
    whole = checkpoint.find(record.checkpoints)
    if not whole:
        raise StateError(
            "this run has no checkpoint yet", found=record.folder, hint="it is written during training and at its end"
        )
    return whole[-1]


def load_model(record: Record) -> nn.Module:
    """The module with the weights that the run ended with (averaged, where the job keeps an average), on the CPU.

    Raises: StateError, CheckpointMismatch.
    """
    job = record.task().prepared.job
    _, path = newest(record)
    weights = shards.read_whole(path, "model.") | shards.read_whole(path, "ema.")
    device = torch.device("cpu")
    module = build(job.model, job.seed, device, torch.float32)
    check_same_model(checkpoint.facts_of(path)["shapes"], meta_shapes(module))
    materialize(module, job.seed, device, [("", module)], lambda unit: None)
    module.load_state_dict(weights, strict=False)
    return module.eval()


def check_resumable(job: Job, record: Record) -> None:
    """Raises: CheckpointMismatch where the newest checkpoint is of another model than the job's."""
    _, path = newest(record)
    with torch.device("meta"):
        module = job.model if isinstance(job.model, nn.Module) else job.model()
    check_same_model(checkpoint.facts_of(path)["shapes"], meta_shapes(module))

"""What a model in training is asked beside the steps: the held-out figures, and a sample of what it writes."""

from __future__ import annotations

import math

import torch

from konvoi.island import LiveIsland
from konvoi.job.data.loader import eval_batches
from konvoi.job.data.tokenizer import load_tokenizer
from konvoi.job.objectives import measured
from konvoi.job.sampling import continue_tokens, logits_of
from konvoi.plan.split.parts import Parts
from konvoi.task import Task

SAMPLE_TOKENS = 200


def held_out(island: LiveIsland, parts: Parts, task: Task) -> dict[str, float]:
    """The objective's figures over the held-out part: loss, and what else it measures, each divided by the weight."""
    job, splits = task.prepared.job, task.prepared.splits
    assert splits.valid is not None
    items = eval_batches(
        splits.valid,
        batch=job.global_batch,
        worker=island.part,
        num_workers=island.plan.num_parts,
        collate=job.collate,
    )
    if job.validate_batches:
        items = (item for _, item in zip(range(job.validate_batches), items, strict=False))

    sums = island.sums(parts, (island.to_device(item) for item in items), measured(job.objective))
    weight = sums.pop("weight")
    values = {name: value / weight if weight else math.nan for name, value in sums.items()}
    if splits.spec.bytes_per_token:
        values["bits_per_byte"] = values["loss"] / math.log(2) / splits.spec.bytes_per_token
    return values


def sample(island: LiveIsland, parts: Parts, task: Task) -> str | None:
    """What the model writes after the job's prompt; every worker takes part. None where the job asks for nothing."""
    spec, prompt = task.prepared.splits.spec, task.prepared.job.sample_prompt
    if prompt is None or spec.tokenizer is None or spec.seq_len is None:
        return None
    tokenizer = load_tokenizer(spec.tokenizer)

    def last_logits(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = island.tell_all_stages(
            parts.run(lambda module, batch: logits_of(module(batch))[:, -1:], ids)
        )
        return found

    for module in parts.modules:
        module.eval()
    tokens = continue_tokens(
        last_logits,
        tokenizer.encode(prompt) or [tokenizer.end_of_text],
        SAMPLE_TOKENS,
        max_context=spec.seq_len,
        end=tokenizer.end_of_text,
        device=island.device,
    )
    for module in parts.modules:
        module.train()
    return tokenizer.decode(tokens)

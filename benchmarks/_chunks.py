"""What a worker of `pipeline.py` does: train a pipeline, and note when each micro-batch's forward and backward ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _work
from konvoi.fleet.worker import Place
from konvoi.island import enter
from konvoi.job.data.loader import Batches
from konvoi.learner import Learner
from konvoi.plan.island import Island


@dataclass(frozen=True)
class Span:
    """One chunk: "F" or "B" of a micro-batch on a stage, in seconds of the host's one clock."""

    kind: str
    stage: int
    number: int
    begin: float
    end: float


def measure(place: Place, payload: tuple[_work.Work, Island, int]) -> list[list[Span]]:
    """Every chunk of this worker, step by step."""
    from torch.distributed.pipelining import stage as torch_stage

    work, plan, num_steps = payload
    job = _work.job(work, steps=num_steps, workers=1)
    steps: list[list[Span]] = []

    def timed(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, number: int, *args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = original(self, number, *args, **kwargs)
            steps[-1].append(Span(kind, self.stage_index, number, begin, time.perf_counter()))
            return result

        return run

    base = torch_stage._PipelineStageBase
    kept = base.forward_one_chunk, base.backward_one_chunk
    base.forward_one_chunk, base.backward_one_chunk = timed("F", kept[0]), timed("B", kept[1])  # type: ignore[method-assign]
    try:
        with enter(place, plan) as island:
            splits = _work.prepared(work)
            parts = island.split(_work.recipe(work).fit(splits.spec), job.objective, seed=0)
            learner = Learner(job, parts, num_steps)
            batches = Batches(
                splits.train,
                seed=0,
                global_batch=job.global_batch,
                worker=island.part,
                num_workers=plan.num_parts,
                accumulate=plan.accumulate,
            )
            for step, micro in zip(range(1, num_steps + 1), batches, strict=False):
                steps.append([])
                learner.lr(step)
                gradient = island.forward_backward(parts, micro)
                island.clip(parts, gradient, 1.0)
                learner.step()
    finally:
        base.forward_one_chunk, base.backward_one_chunk = kept  # type: ignore[method-assign]
    return steps

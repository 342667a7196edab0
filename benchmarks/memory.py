"""What each plan's workers hold at the worst moment of a step, against the formula of docs/memory.md; 2 workers.

    python benchmarks/memory.py --json        about 8 minutes on 2 cores

A GPT of 57 million parameters is trained for three steps with AdamW in fp32: its states are 907 MB in one process, 453
MB on each worker where they are split. The meter is resident memory without files, with a share of what is held in
common (smaps_rollup), sampled every 2 ms, less what the process held before it built the model: its process group
started, and the same done once with a tiny model, so that torch has loaded what it needs. A ratio is the measured peak
over the formula's. Beside it plain FSDP2 and DeepSpeed's ZeRO by the same meter, in processes that give freed memory
back as ours do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import _harness
import _resident
from _harness import Figure, Options, Result, absent, spread
from _resident import Shape
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.plan.island import Island
from konvoi.proof import PRELOAD

KEYS = ("worst_ratio_vs_theory", "best_ratio_vs_theory")
WORKERS = 2
PLANS = {
    "ddp": Island(dp=WORKERS),
    "zero1": Island(fsdp=WORKERS, zero=1),
    "zero2": Island(fsdp=WORKERS, zero=2),
    "zero3": Island(fsdp=WORKERS),
    "tp": Island(tp=WORKERS),
    "pp": Island(pp=WORKERS),
}
DEEPSPEED = {f"deepspeed_{stage}": stage for stage in ("zero1", "zero2", "zero3")}
QUICK = Shape(depth=4, width=256)


def theory(shape: Shape, plan: Island) -> float:
    """docs/memory.md, in bytes, of the worker that holds most."""
    width, wide = shape.width, shape.recipe().shape.mlp_width
    norms = 2 * width
    block = 4 * width * width + 3 * width * wide + norms
    outside = 2 * _resident.VOCAB * width + width
    whole = shape.depth * block + outside
    activations = shape.depth * _activations(shape, plan)
    n = plan.fsdp
    if plan.fsdp > 1 and plan.zero == 3:
        return 16 * whole / n + 4 * outside + max(16 * block, 8 * outside) + activations
    if plan.fsdp > 1:
        return 12 * whole / n + 4 * whole + 8 * block + activations
    if plan.tp > 1:
        cut = shape.depth * (block - norms) + 2 * _resident.VOCAB * width
        return 16 * (cut / plan.tp + shape.depth * norms + width) + activations
    if plan.pp > 1:
        return 16 * (shape.depth / plan.pp * block + outside / 2) + activations
    return 16 * whole + activations


def _activations(shape: Shape, plan: Island) -> float:
    """Of a block: what its backward pass keeps. Two norms' inputs and outputs, q, k, v and attention's output, and
    three of the MLP's width; a pipeline's worker has half of the blocks, and as many micro-batches on the way."""
    tokens = _resident.SAMPLES * _resident.SEQ
    return 4.0 * tokens * (10 * shape.width + 4 * shape.recipe().shape.mlp_width)


def run(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """Peaks in bytes by name; every run in processes of its own."""
    with AgentHandle((*PRELOAD, "konvoi.plan.split.tensor", "torch.distributed.pipelining")) as agent:

        def one(program: str, plan: Island) -> float:
            with Pool(agent, WORKERS) as pool:
                return float(max(pool.run(_resident.MEASURES[program], (shape, plan), WORKERS, timeout_s=300)))

        programs = {name: lambda plan=plan: one("konvoi", plan) for name, plan in PLANS.items()}
        programs["plain_fsdp2"] = lambda: one("fsdp2", PLANS["zero3"])
        if _harness.version("deepspeed", why="ZeRO by DeepSpeed is not weighed"):
            programs |= {name: lambda stage=stage: one("deepspeed", PLANS[stage]) for name, stage in DEEPSPEED.items()}
        return _harness.alternate(programs, rounds)


def measure(options: Options, run: Callable[[Shape, int], Mapping[str, list[float]]] = run) -> Result:
    shape = QUICK if options.quick else Shape()
    peaks = run(shape, options.rounds or (1 if options.quick else 3))
    figures: dict[str, Figure] = {}
    ratios: dict[str, list[float]] = {}
    for name, plan in PLANS.items():
        expected = theory(shape, plan)
        ratios[name] = [peak / expected for peak in peaks[name]]
        figures |= spread(f"{name}_ratio_vs_theory", ratios[name])
        figures |= spread(f"{name}_mb", [peak / 1e6 for peak in peaks[name]]) | {f"{name}_theory_mb": expected / 1e6}
    for name in ("plain_fsdp2", *DEEPSPEED):
        mb = [peak / 1e6 for peak in peaks.get(name, ())]
        figures |= spread(f"{name}_mb", mb) if mb else absent(f"{name}_mb")
    worst = max(ratios.values(), key=lambda values: sorted(values)[len(values) // 2])
    best = min(ratios.values(), key=lambda values: sorted(values)[len(values) // 2])
    figures |= spread("worst_ratio_vs_theory", worst) | spread("best_ratio_vs_theory", best)
    return Result(figures, {f"{name}_mb": [peak / 1e6 for peak in values] for name, values in peaks.items()})


if __name__ == "__main__":
    _harness.main("memory", KEYS, measure)

"""How much a pipeline idles beyond what its schedule must: GPipe and 1F1B, 2 stages, 4, 8 and 16 micro-batches.

    python benchmarks/pipeline.py --json        about 5 minutes on 2 cores

Two workers train a GPT; every forward and backward of every micro-batch is timed where it runs. The idle share of a
step is what the workers do not compute between the first chunk's begin and the last one's end. Beside it stands the
idle share of the same schedule simulated from those chunks' measured times, with transfers that take no time: what no
implementation could avoid. `bubble_excess` is the difference, the median over steps, the worst over all cases.
`imbalance` is the slower stage's time over the mean of both, less one: how even the cut is.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import _chunks
import _harness
import _work
from _chunks import Span
from _harness import Figure, Options, Result, spread
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.plan.island import Island
from konvoi.proof import PRELOAD

KEYS = ("bubble_excess", "imbalance")
STAGES = 2
SCHEDULES = ("gpipe", "1f1b")
MICRO_BATCHES = (4, 8, 16)
WARM_UP = 2  # steps

Chunk = tuple[str, int, int]  # kind, stage, number of the micro-batch
Steps = list[list[Span]]  # of all workers, step by step


def order(schedule: str, stage: int, num_stages: int, num_micro: int) -> list[Chunk]:
    """In which order a worker runs its chunks: all forwards first, or as soon as it can (arXiv 2006.09503 figure 2).

    >>> order("1f1b", 1, 2, 2)
    [('F', 1, 0), ('B', 1, 0), ('F', 1, 1), ('B', 1, 1)]
    """
    ahead = num_micro if schedule == "gpipe" else min(num_stages - stage, num_micro)
    forwards = [("F", stage, number) for number in range(num_micro)]
    backwards = [("B", stage, number) for number in range(num_micro)]
    found, rest = forwards[:ahead], forwards[ahead:]
    for backward in backwards:
        found.append(backward)
        found += rest[:1]
        rest = rest[1:]
    return found


def simulated(schedule: str, seconds: dict[Chunk, float]) -> float:
    """The idle share of this schedule with these chunks, where nothing but them takes time."""
    num_stages = 1 + max(stage for _, stage, _ in seconds)
    num_micro = 1 + max(number for _, _, number in seconds)
    waiting = [order(schedule, stage, num_stages, num_micro) for stage in range(num_stages)]
    free, done = [0.0] * num_stages, dict[Chunk, float]()
    while any(waiting):
        for stage, chunks in enumerate(waiting):
            while chunks:
                needed = before(chunks[0], num_stages)
                if needed is not None and needed not in done:
                    break
                begin = max(free[stage], done[needed] if needed else 0.0)
                free[stage] = done[chunks[0]] = begin + seconds[chunks[0]]
                chunks.pop(0)
    return 1 - sum(seconds.values()) / (num_stages * max(free))


def before(chunk: Chunk, num_stages: int) -> Chunk | None:
    """What another stage must have done first."""
    kind, stage, number = chunk
    if kind == "F":
        return ("F", stage - 1, number) if stage > 0 else None
    return ("B", stage + 1, number) if stage < num_stages - 1 else ("F", stage, number)


def measured(spans: Iterable[Span]) -> float:
    spans = list(spans)
    length = max(span.end for span in spans) - min(span.begin for span in spans)
    num_stages = len({span.stage for span in spans})
    return 1 - sum(span.end - span.begin for span in spans) / (num_stages * length)


def seconds_of(spans: Iterable[Span]) -> dict[Chunk, float]:
    return {(span.kind, span.stage, span.number): span.end - span.begin for span in spans}


def imbalance(spans: Iterable[Span]) -> float:
    """
    >>> imbalance([Span("F", 0, 0, 0.0, 1.0), Span("F", 1, 0, 1.0, 4.0)])
    0.5
    """
    totals: dict[int, float] = {}
    for span in spans:
        totals[span.stage] = totals.get(span.stage, 0.0) + span.end - span.begin
    return max(totals.values()) / statistics.mean(totals.values()) - 1


def run(cases: Sequence[tuple[str, int]], work: _work.Work, num_steps: int, rounds: int) -> dict[str, Steps]:
    """The chunks of both workers of every case, its rounds after one another, the cases taking turns."""
    with AgentHandle(PRELOAD) as agent, Pool(agent, STAGES) as pool:

        def train(schedule: str, num_micro: int) -> Steps:
            plan = Island(pp=STAGES, schedule=schedule, accumulate=num_micro)
            sized = dataclasses.replace(work, batch=work.batch * num_micro)
            workers = pool.run(_chunks.measure, (sized, plan, WARM_UP + num_steps), STAGES, timeout_s=600)
            return [list(chain(*both)) for both in zip(*workers, strict=True)][WARM_UP:]

        programs = {f"{schedule}_{num}": lambda s=schedule, n=num: train(s, n) for schedule, num in cases}
        return {name: list(chain(*found)) for name, found in _harness.alternate(programs, rounds).items()}


def measure(options: Options, run: Callable[..., dict[str, Steps]] = run) -> Result:
    cases = [(schedule, num) for schedule in SCHEDULES for num in MICRO_BATCHES]
    if options.quick:
        cases = cases[:1] + cases[-3:-2]
    work = _work.WORKS["gpt_2m" if options.quick else "gpt_20m"]
    work = dataclasses.replace(work, batch=2)  # sequences per micro-batch
    steps = run(cases, work, 2 if options.quick else 5, options.rounds or (1 if options.quick else 3))
    figures: dict[str, Figure] = {}
    repeats: dict[str, Sequence[float]] = {}
    worst: list[float] = []
    for name, found in steps.items():
        schedule = name.rpartition("_")[0]
        excess = [measured(spans) - simulated(schedule, seconds_of(spans)) for spans in found]
        figures |= spread(f"idle_{name}", [measured(spans) for spans in found])
        figures |= spread(f"excess_{name}", excess)
        repeats[f"excess_{name}"] = excess
        worst = max(worst, excess, key=lambda values: statistics.median(values) if values else float("-inf"))
    figures |= spread("bubble_excess", worst)
    figures |= spread("imbalance", [imbalance(spans) for found in steps.values() for spans in found])
    return Result(figures, repeats)


if __name__ == "__main__":
    _harness.main("pipeline", KEYS, measure)

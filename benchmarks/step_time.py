"""A training step of `konvoi.train` against DistributedDataParallel and transformers.Trainer: 2 workers, 1 thread each.

    python benchmarks/step_time.py --json        about 5 minutes on 2 cores

What is timed is each one's real loop, as its users run it, in a process tree of its own: 20 steps to warm up, then a
block of 100, from the end of the 20th step to the end of the 120th, with all that lies between (data, clipping,
events, the record on disk). Blocks of the three alternate in a rotating order. Whole runs alternate rather than two
loops inside one pair of processes, because there konvoi would have to be driven by something that no user calls, and
each loop would start from the allocator's state that the other left. The ratio is taken between blocks of the same
round, so that a slow minute of the machine hits both; `..._median_step` is the same between the blocks' median steps,
which single interruptions do not reach.

Model class, initial weights, samples and their order, loader, threads, AdamW (fused) and clipping are the same for all;
the losses at the block's end must agree, or nothing is reported.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import _harness
import _programs
import _work
from _harness import Figure, Options, Result, absent, paired_ratios, spread
from _programs import Order, Trace

KEYS = ("ratio_vs_ddp", "ratio_vs_hf_trainer")
PEERS = ("ddp", "hf_trainer")
SAME_LOSS = 0.002  # relative: sums in another order drift apart by less, another order of samples by more


def measure(options: Options, run: Callable[[str, Order], Trace] = _programs.run) -> Result:
    warm_up, block, rounds = (5, 20, 1) if options.quick else (_work.WARM_UP, 100, 5)
    trainer = _harness.version("transformers", why="hf_trainer")
    order = Order("small_gpt", warm_up + block)
    names = ["konvoi", "ddp", *(["hf_trainer"] if trainer else [])]
    traces = _harness.alternate({name: lambda name=name: run(name, order) for name in names}, options.rounds or rounds)
    check_same_work(traces, last=min(10, block))

    block_s = {name: [trace.span_s(warm_up, order.steps) for trace in runs] for name, runs in traces.items()}
    median_s = {name: [median_step_s(trace, warm_up) for trace in runs] for name, runs in traces.items()}
    figures: dict[str, Figure] = {"num_parameters": traces["konvoi"][0].num_parameters, "hf_trainer": trainer}
    for peer in PEERS:
        figures |= against(peer, block_s, median_s)
    for name, seconds in block_s.items():
        figures |= spread(f"{name}_step_ms", [1e3 * s / block for s in seconds])
    figures |= {f"{name}_loss": final_loss(runs[-1], 10) for name, runs in traces.items()}
    return Result(figures, {f"{name}_block_s": seconds for name, seconds in block_s.items()})


def against(
    peer: str, block_s: Mapping[str, Sequence[float]], median_s: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
    names = f"ratio_vs_{peer}", f"ratio_vs_{peer}_median_step"
    if peer not in block_s:
        return absent(*names, f"{peer}_step_ms")
    return spread(names[0], paired_ratios(block_s["konvoi"], block_s[peer])) | spread(
        names[1], paired_ratios(median_s["konvoi"], median_s[peer])
    )


def median_step_s(trace: Trace, warm_up: int) -> float:
    ends = trace.ends[warm_up - 1 :]
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def final_loss(trace: Trace, last: int) -> float:
    return statistics.mean(trace.losses[-last:])


def check_same_work(traces: Mapping[str, Sequence[Trace]], last: int) -> None:
    """Raises: RuntimeError where the programs did not learn the same."""
    losses = {name: final_loss(runs[0], last) for name, runs in traces.items()}
    if max(losses.values()) > (1 + SAME_LOSS) * min(losses.values()):
        raise RuntimeError(f"the programs did not do the same work: losses {losses}")


if __name__ == "__main__":
    _harness.main("step_time", KEYS, measure)

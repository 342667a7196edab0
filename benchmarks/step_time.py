"""A training step of `konvoi.train` against DistributedDataParallel and transformers.Trainer: 2 workers, 1 thread each.

    python benchmarks/step_time.py --json        about 10 minutes on 2 cores

What is timed is each one's real loop, as its users run it, in a process tree of its own, with all that lies between
two steps (data, clipping, events, the record on disk). All three are alive and run by turns of 25 steps, the others
stopped meanwhile (`_turns.py`); four turns are a block of 100 steps, and a ratio is taken between the mean steps of
blocks that lie in the same minute. Loops inside one pair of processes would be closer yet, but konvoi would have to be
driven by something that no user calls, and each loop would start from the allocator's state that the other left.
`..._median_step` is the same between the blocks' median steps, which single interruptions do not reach.

Model class, initial weights, samples and their order, loader, threads, AdamW (fused) and clipping are the same for all;
the losses of the last steps must agree, or nothing is reported.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import _harness
import _turns
import _work
from _harness import Figure, Options, Result, absent, paired_ratios, spread
from _programs import Order, Trace
from _turns import Turns

KEYS = ("ratio_vs_ddp", "ratio_vs_hf_trainer")
PEERS = ("ddp", "hf_trainer")
SAME_LOSS = 0.002  # relative: sums in another order drift apart by less, another order of samples by more
TURN, TURNS_A_BLOCK = 25, 4


def measure(options: Options, take_turns: Callable[..., dict[str, Turns]] = _turns.take_turns) -> Result:
    num_blocks = options.rounds or (1 if options.quick else 10)
    first, turn = (5, 5) if options.quick else (_work.WARM_UP, TURN)
    num_turns = num_blocks * TURNS_A_BLOCK
    trainer = _harness.version("transformers", why="hf_trainer")
    # A turn more than is timed: nobody is at its end, and saving there, while the last turns are taken.
    order = Order("small_gpt", first + (num_turns + 1) * turn)
    names = ["konvoi", "ddp", *(["hf_trainer"] if trainer else [])]
    done = take_turns({name: (name, order) for name in names}, first=first, per_turn=turn, num_turns=num_turns)
    check_same_work({name: turns.trace for name, turns in done.items()}, last=10)

    blocks = {name: in_blocks(turns) for name, turns in done.items()}
    means = {name: [statistics.mean(block) for block in of] for name, of in blocks.items()}
    medians = {name: [statistics.median(block) for block in of] for name, of in blocks.items()}
    figures: dict[str, Figure] = {"num_parameters": done["konvoi"].trace.num_parameters, "hf_trainer": trainer}
    for peer in PEERS:
        figures |= against(peer, means, medians)
    for name, seconds in means.items():
        figures |= spread(f"{name}_step_ms", [1e3 * s for s in seconds])
    figures |= {f"{name}_loss": final_loss(turns.trace, 10) for name, turns in done.items()}
    return Result(figures, {f"{name}_step_s": seconds for name, seconds in means.items()})


def in_blocks(turns: Turns) -> list[list[float]]:
    """Seconds of the steps, turns of a block together."""
    seconds = [turn.seconds for turn in turns.turns]
    blocks = [seconds[k : k + TURNS_A_BLOCK] for k in range(0, len(seconds), TURNS_A_BLOCK)]
    return [list(itertools.chain.from_iterable(block)) for block in blocks]


def against(
    peer: str, means: Mapping[str, Sequence[float]], medians: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
    names = f"ratio_vs_{peer}", f"ratio_vs_{peer}_median_step"
    if peer not in means:
        return absent(*names, f"{peer}_step_ms")
    return spread(names[0], paired_ratios(means["konvoi"], means[peer])) | spread(
        names[1], paired_ratios(medians["konvoi"], medians[peer])
    )


def final_loss(trace: Trace, last: int) -> float:
    return statistics.mean(trace.losses[-last:])


def check_same_work(traces: Mapping[str, Trace], last: int) -> None:
    """Raises: RuntimeError where the programs did not learn the same."""
    losses = {name: final_loss(trace, last) for name, trace in traces.items()}
    if max(losses.values()) > (1 + SAME_LOSS) * min(losses.values()):
        raise RuntimeError(f"the programs did not do the same work: losses {losses}")


if __name__ == "__main__":
    _harness.main("step_time", KEYS, measure)

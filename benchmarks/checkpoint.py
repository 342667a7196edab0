"""What checkpoints cost a run: konvoi's, and `torch.save` in the loop of DDP; each with and without.

    python benchmarks/checkpoint.py --json        about half an hour on 2 cores

A GPT of 20M parameters with AdamW (240 MB a checkpoint), 8 x 128 tokens per worker, 2 workers, 20 steps with a
checkpoint and 20 without one in alternation, ten times. Both programs are alive and run by turns (`_turns.py`) of 20
steps: a checkpoint is begun in the middle of every second turn and is whole on disk long before its end, so that no
other turn pays for it. Turns with and without are those of one process tree: two trees of the same program differ by
more (docs/LOG.md) than a checkpoint costs.

blocked_fraction   seconds that training stood still inside a save, over the wall time of these steps
stall_fraction     (wall time with a checkpoint - without) / without, over all turns; `_median`, `_min`, `_max` by pairs
"""

import statistics
from collections.abc import Callable, Sequence

import _harness
import _turns
from _harness import Figure, Options, Result, spread
from _programs import Order, Trace
from _turns import Turns

KEYS = ("blocked_fraction", "stall_fraction", "torch_save_blocked_fraction", "torch_save_stall_fraction")
PREFIXES = {"konvoi": "", "ddp": "torch_save_"}


def measure(options: Options, take_turns: Callable[..., dict[str, Turns]] = _turns.take_turns) -> Result:
    work, every = ("gpt_2m", 10) if options.quick else ("gpt_20m", 20)
    num_turns = options.rounds or (2 if options.quick else 10)
    first = every + every // 2  # and so the first checkpoint is in the middle of the first turn
    last = first + 2 * every * num_turns
    # A few steps more than are timed: what konvoi saves at the end of every run falls behind them.
    order = Order(work, last + every // 4, checkpoint_every=2 * every)
    programs = {program: (program, order) for program in PREFIXES}
    done = take_turns(programs, first=first, per_turn=every, num_turns=2 * num_turns)

    figures: dict[str, Figure] = {"steps": every * num_turns, "checkpoint_every": every}
    figures["num_parameters"] = done["konvoi"].trace.num_parameters
    repeats: dict[str, list[float]] = {}
    for program, prefix in PREFIXES.items():
        trace, turns = done[program].trace, [turn.span_s(every) for turn in done[program].turns]
        check_saved(program, trace, first, last, num_turns)
        with_s, without_s = turns[0::2], turns[1::2]
        blocked_s = [seconds for step, seconds in trace.blocked if first < step <= last]
        figures[f"{prefix}blocked_fraction"] = sum(blocked_s) / sum(with_s)
        figures |= over_turns(f"{prefix}blocked_fraction", [b / s for b, s in zip(blocked_s, with_s, strict=True)])
        figures[f"{prefix}stall_fraction"] = sum(with_s) / sum(without_s) - 1
        stalls = [a / b - 1 for a, b in zip(with_s, without_s, strict=True)]
        figures |= over_turns(f"{prefix}stall_fraction", stalls)
        figures |= spread(f"{prefix}with_s", with_s) | spread(f"{prefix}without_s", without_s)
        repeats |= {f"{prefix}with_s": with_s, f"{prefix}without_s": without_s, f"{prefix}blocked_s": blocked_s}
    return Result(figures, repeats)


def over_turns(name: str, values: Sequence[float]) -> dict[str, Figure]:
    return {f"{name}_median": statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def check_saved(program: str, trace: Trace, first: int, last: int, expected: int) -> None:
    """Raises: RuntimeError where checkpoints are missing: a run that skips them would look free."""
    found = sum(first < step <= last for step, _ in trace.blocked)
    if found != expected:
        raise RuntimeError(f"{program} wrote {found} checkpoints in the timed steps where {expected} were due")


if __name__ == "__main__":
    _harness.main("checkpoint", KEYS, measure)

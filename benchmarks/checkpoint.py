"""What checkpoints cost a run: konvoi's, and `torch.save` in the loop of DDP; each with and without, alternating.

    python benchmarks/checkpoint.py --json        most of an hour on 2 cores

A GPT of 20M parameters with AdamW (240 MB a checkpoint), 8 x 128 tokens per worker, 2 workers, a checkpoint every 20
steps. The 200 steps that are timed end 10 steps after the last checkpoint, so that what is written in the background
falls inside them, too.

blocked_fraction   seconds that training stood still inside a save, over the wall time of these steps
stall_fraction     (wall time with checkpoints - without) / without, in each round
"""

from collections.abc import Callable

import _harness
import _programs
from _harness import Figure, Options, Result, spread
from _programs import Order, Trace

KEYS = ("blocked_fraction", "stall_fraction", "torch_save_blocked_fraction", "torch_save_stall_fraction")
PREFIXES = {"konvoi": "", "ddp": "torch_save_"}


def measure(options: Options, run: Callable[[str, Order], Trace] = _programs.run) -> Result:
    work, every, num_checkpoints = ("gpt_2m", 10, 2) if options.quick else ("gpt_20m", 20, 10)
    rounds = options.rounds or (1 if options.quick else 2)
    first = every // 2
    last = first + every * num_checkpoints
    # One step more than is timed: what konvoi saves at the end of every run falls behind it.
    orders = {"without": Order(work, last + 1), "with": Order(work, last + 1, checkpoint_every=every)}
    programs = {
        f"{program}, {how}": (lambda program=program, order=order: run(program, order))
        for program in PREFIXES
        for how, order in orders.items()
    }
    traces = _harness.alternate(programs, rounds)

    figures: dict[str, Figure] = {"steps": last - first, "checkpoint_every": every}
    figures["num_parameters"] = traces["konvoi, with"][0].num_parameters
    repeats: dict[str, list[float]] = {}
    for program, prefix in PREFIXES.items():
        saving = traces[f"{program}, with"]
        for trace in saving:
            check_saved(program, trace, first, last, num_checkpoints)
        with_s = [trace.span_s(first, last) for trace in saving]
        without_s = [trace.span_s(first, last) for trace in traces[f"{program}, without"]]
        blocked_s = [trace.blocked_s(first, last) for trace in saving]
        stalls = [(a - b) / b for a, b in zip(with_s, without_s, strict=True)]
        figures |= spread(f"{prefix}blocked_fraction", [b / s for b, s in zip(blocked_s, with_s, strict=True)])
        figures |= spread(f"{prefix}stall_fraction", stalls)
        figures |= spread(f"{prefix}with_s", with_s) | spread(f"{prefix}without_s", without_s)
        repeats |= {f"{prefix}with_s": with_s, f"{prefix}without_s": without_s, f"{prefix}blocked_s": blocked_s}
    return Result(figures, repeats)


def check_saved(program: str, trace: Trace, first: int, last: int, expected: int) -> None:
    """Raises: RuntimeError where checkpoints are missing: a run that skips them would look free."""
    found = sum(first < step <= last for step, _ in trace.blocked)
    if found != expected:
        raise RuntimeError(f"{program} wrote {found} checkpoints in the timed steps where {expected} were due")


if __name__ == "__main__":
    _harness.main("checkpoint", KEYS, measure)

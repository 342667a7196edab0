"""Four far islands, of which one is killed again and again, one cut off, and one three times as slow.

    python benchmarks/wan_faults.py --json        about 8 minutes on 2 cores, as root

In a lab of four hosts of 0.4 cores, 100 Mbit/s and 80 ms apart, a GPT of two million parameters: island 1 is killed
with -9 every 30 s and comes back by itself, island 2 is cut off for 20 s, island 3 has a third of the others' quota.

`goodput`: tokens of updates that were counted, over what the islands would have read while they lived and were
connected: the rate of islands that never exchange, a third of it for the slow one; also by island, and of a quiet run
(`goodput_quiet`). That rate is of the second half of some steps: in the first seconds workers still load what
checkpoints need, which takes a fifth of so small a share of a processor. `loss_gap`: held-out loss against a quiet run
of as many tokens. `recovery_s`: from a kill to the island's next step, without the seconds that the agreed state was on
its way. `restarted_others`: how often any other island began anew.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence

import _far
import _harness
from _far import SAMPLES, Shape, Trace
from _harness import Figure, Options, Result, say, spread
from konvoi.job import data, schedules
from konvoi.lab import Link, fault
from konvoi.observe.events import Agreed, Evaluated, Restarted, StateFetched, StepDone, WorkerDied
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.presets import parse

KEYS = ("goodput", "loss_gap", "recovery_s")
PLAN = "convoy,every=8,pace=time,compression=low_bit:1,ahead=8,deadline_s=1,patience_s=3"
SHAPE = Shape(depth=4, width=192)
STEPS, FREE = 240, 60
KILLED, CUT, SLOW = "island-1", "island-2", "island-3"
CUT_AT, CUT_S = 45, 20
FAULTS = ("kill 1 every 30", f"cut 2 at {CUT_AT} for {CUT_S}", f"slow 3 to {_far.CORES / 3:.3f} at 0")
QUICK = ("kill 1 at 3", "cut 2 at 2 for 2", "slow 3 to 0.2 at 0")


def measure(options: Options, train: Callable[..., Trace] = _far.train) -> Result:
    steps, free_steps = (40, 10) if options.quick else (STEPS, FREE)
    plan = parse(f"|{PLAN}")
    assert isinstance(plan, Plan)
    job = _job(steps)
    say("islands that never exchange")
    free = train(Convoy(every=free_steps + 1), Link(), _far.job(SHAPE, free_steps))
    rate = SAMPLES / free.step_s(free_steps // 2, free_steps)
    say("with faults")
    faults = [fault(text) for text in (QUICK if options.quick else FAULTS)]
    bad = train(plan.convoy, Link(), job, faults=faults)
    begin, end = window(bad)
    counted = {name: sum(one.counted.get(name, 0) for one in agreements(bad, begin, end)) for name in bad.ends}
    possible = {name: rate * living(bad, name, begin, end) / (3 if name == SLOW else 1) for name in bad.ends}
    say("quiet, with as many tokens")
    every = plan.convoy.every
    quiet_steps = max(every, round(total_counted(bad) / (SAMPLES * len(bad.ends)) / every) * every)
    quiet = train(plan.convoy, Link(), _job(quiet_steps))
    recovery = list(recoveries(bad.events[KILLED]))
    figures: dict[str, Figure] = {
        "goodput": sum(counted.values()) / sum(possible.values()),
        **{f"goodput_{name.replace('-', '_')}": counted[name] / possible[name] for name in sorted(bad.ends)},
        "goodput_quiet": quiet_goodput(quiet, rate),
        "loss_gap": held_out(bad) / held_out(quiet) - 1,
        **(spread("recovery_s", recovery) if recovery else _harness.absent("recovery_s")),
        "num_kills": sum(isinstance(one, WorkerDied) for one in bad.events[KILLED]),
        "restarted_others": sum(
            isinstance(one, Restarted) for name, of in bad.events.items() if name != KILLED for one in of
        ),
        "seconds": end - begin,
        "counted_samples": sum(counted.values()),
        "possible_samples": sum(possible.values()),
        "free_samples_per_s": rate,
        "quiet_steps": quiet_steps,
        "loss": held_out(bad),
        "quiet_loss": held_out(quiet),
        "plan": PLAN,
    }
    return Result(figures, {"recovery_s": recovery})


def _job(steps: int) -> object:
    few = data.text("stdlib", seq_len=_far.SEQ_LEN, holdout=0.003)  # to evaluate on: it is each island's own time
    return _far.job(SHAPE, steps, data=few, schedule=schedules.cosine(warmup=0.05, floor=0.1), validate_every=steps)


def window(trace: Trace) -> tuple[float, float]:
    """From the first step of all islands to the last agreement, in seconds since the epoch."""
    firsts = [next(one.time for one in events if isinstance(one, StepDone)) for events in trace.events.values()]
    return max(firsts), [one.time for one in trace.events["island-0"] if isinstance(one, Agreed)][-1]


def quiet_goodput(trace: Trace, rate: float) -> float:
    begin, end = window(trace)
    counted = sum(sum(one.counted.values()) for one in agreements(trace, begin, end))
    return counted / (rate * (end - begin) * len(trace.ends))


def agreements(trace: Trace, begin: float, end: float) -> list[Agreed]:
    return [one for one in trace.events["island-0"] if isinstance(one, Agreed) and begin <= one.time <= end]


def total_counted(trace: Trace) -> int:
    return sum(sum(one.counted.values()) for one in agreements(trace, 0.0, float("inf")))


def living(trace: Trace, name: str, begin: float, end: float) -> float:
    """Seconds in which an island ran, and was not cut off."""
    seconds, died = end - begin, 0.0
    for one in trace.events[name]:
        if isinstance(one, WorkerDied):
            died = one.time
        elif isinstance(one, Restarted) and died:
            seconds -= max(0.0, min(one.time, end) - max(died, begin))
    return seconds - (max(0.0, min(CUT_S, end - begin - CUT_AT)) if name == CUT else 0.0)


def recoveries(events: Sequence[object]) -> Iterator[float]:
    """Of each kill: seconds until the next step, without those of the state's transfer."""
    died, fetched = 0.0, 0.0
    for one in events:
        if isinstance(one, WorkerDied):
            died, fetched = one.time, 0.0
        elif isinstance(one, StateFetched):
            fetched = one.seconds
        elif isinstance(one, StepDone) and died:
            yield one.time - died - fetched
            died = 0.0


def held_out(trace: Trace) -> float:
    """Of the last evaluation of each island that was never killed, the mean."""
    last = {
        name: [one.values["loss"] for one in events if isinstance(one, Evaluated)]
        for name, events in trace.events.items()
        if name != KILLED
    }
    return statistics.mean(losses[-1] for losses in last.values() if losses)


if __name__ == "__main__":
    _harness.main("wan_faults", KEYS, measure)

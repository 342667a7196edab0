"""Islands far apart: what is learnt over a few bytes, and how much of their time they train.

    python benchmarks/wan.py --part learning --json        hours, at the first time: runs accumulate in results/
    python benchmarks/wan.py --part speed --json           about 50 minutes on 2 cores, as root

**learning**: four islands against synchronous training at equal tokens. For each of five rates of bytes (data
parallelism's own, and a 25th, 100th, 400th and 1000th of it) the best of as many trials is taken on one held-out split,
at a third of the length; it is trained anew from other seeds, in full, and compared on another split. `loss_gap_R` is
the mean of the seeds' relative gaps and one standard error. `_learning.py` is one run.

**frontier**: other ways to agree, at the length of the trials, for the picture of loss over bytes that
`docs/make_frontier.py` draws.

**speed**: four islands of 0.4 cores in a lab (`_far.py`), with the plans that the learning part has chosen for a 100th
and a 400th of the bytes. `utilization` is steps a second, over whole rounds, over those of the same islands that never
exchange, measured before and behind each (`free_step_s`: the machine drifts); torchft's DiLoCo agrees as often beside
it. `speedup_of_possible`: how much quicker than torch DDP on the same link, over how much quicker its step would be
without a network. `alone_ratio` shows that a quota is a machine of its own: the step time of an island while the three
others are stopped, over that while they train.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _harness
from _harness import Figure, Options, Result, say, spread
from _learning import Trial
from _runs import Runs, in_processes, read_trial

RATES = (25, 100, 400, 1000)
LEARNING = tuple(f"loss_gap_{rate}" for rate in RATES)
FULL, SEARCH, SEEDS = 3000, 1000, (1, 2, 3)
RUNS = _harness.RESULTS / "learning.jsonl"

SYNCHRONOUS = 1
PLANS = {  # one bit a value, and how far apart: what the rate of bytes asks for
    25: "convoy,every=1,compression=low_bit:1",
    100: "convoy,every=5,compression=low_bit:1,ahead=2",
    400: "convoy,every=14,compression=low_bit:1,ahead=3",
    1000: "convoy,every=34,compression=low_bit:1,ahead=1",
}


def candidate(rate: int, outer_lr: float, outer_momentum: float, feedback: float, lr: float, momentum: float) -> Trial:
    """`lr` and `momentum` are Muon's."""
    outer = f"outer_lr={outer_lr},outer_momentum={outer_momentum},feedback={feedback}"
    return Trial(f"{PLANS[rate]},{outer}", lr, momentum, steps=SEARCH)


# Outer step, its momentum, feedback, and Muon's lr and momentum. The same number for each rate, at a third of the
# length; what was looked at before, for all of them, is in docs/LOG.md.
CANDIDATES = {
    25: (
        (1.3, 0.0, 1.0, 0.007, 0.95),
        (1.3, 0.0, 1.0, 0.01, 0.95),
        (1.3, 0.2, 1.0, 0.007, 0.95),
        (1.3, 0.2, 0.85, 0.01, 0.95),
        (1.6, 0.0, 0.8, 0.01, 0.95),
        (1.6, 0.2, 0.85, 0.007, 0.95),
        (1.6, 0.2, 0.85, 0.01, 0.9),
        (1.9, 0.2, 0.85, 0.007, 0.9),
    ),
    100: (
        (1.6, 0.2, 0.85, 0.01, 0.95),
        (1.6, 0.2, 0.85, 0.01, 0.9),
        (1.3, 0.2, 0.85, 0.01, 0.9),
        (1.6, 0.2, 0.7, 0.01, 0.9),
        (1.6, 0.2, 0.7, 0.007, 0.9),
        (1.6, 0.4, 0.8, 0.007, 0.9),
        (1.9, 0.2, 0.7, 0.007, 0.9),
        (1.9, 0.2, 0.7, 0.007, 0.95),
    ),
    400: (
        (2.0, 0.2, 0.6, 0.007, 0.95),
        (2.0, 0.2, 0.6, 0.007, 0.9),
        (2.0, 0.2, 0.6, 0.01, 0.9),
        (2.4, 0.2, 0.5, 0.007, 0.95),
        (2.4, 0.2, 0.5, 0.007, 0.9),
        (2.4, 0.2, 0.5, 0.005, 0.9),
        (2.8, 0.2, 0.4, 0.007, 0.9),
        (2.4, 0.4, 0.5, 0.007, 0.9),
    ),
    1000: (
        (2.4, 0.2, 0.5, 0.007, 0.95),
        (2.4, 0.2, 0.5, 0.007, 0.9),
        (2.4, 0.2, 0.5, 0.01, 0.9),
        (2.4, 0.2, 0.5, 0.005, 0.9),
        (2.8, 0.2, 0.5, 0.007, 0.9),
        (2.8, 0.2, 0.4, 0.007, 0.9),
        (3.2, 0.0, 0.5, 0.007, 0.9),
        (2.4, 0.4, 0.5, 0.007, 0.9),
    ),
}
TRIALS: dict[int, list[Trial]] = {
    SYNCHRONOUS: [
        Trial("", lr, momentum, steps=SEARCH)
        for lr, momentum in (
            *((0.005, 0.95), (0.007, 0.95), (0.01, 0.95), (0.014, 0.95)),
            *((0.007, 0.975), (0.01, 0.9), (0.014, 0.9), (0.01, 0.85)),
        )
    ],
    **{rate: [candidate(rate, *values) for values in rows] for rate, rows in CANDIDATES.items()},
}


# Others' ways, at the trials' length: for the picture of docs/frontier.svg.
OTHERS: dict[str, list[Trial]] = {
    "DiLoCo, Nesterov 0.7 and 0.9, 4 bits": [
        Trial(f"diloco,every={every},compression=four_bit", 0.007, steps=SEARCH) for every in (12, 50, 125)
    ],
    "means of weights, 4 bits": [
        Trial(f"local_sgd,every={every},compression=four_bit", 0.007, steps=SEARCH) for every in (3, 12, 50, 125)
    ],
    "means of weights, top 3 %": [
        Trial(f"local_sgd,every={every},compression=top_k:0.03", 0.007, steps=SEARCH) for every in (1, 4, 12)
    ],
    "decoupled momentum 0.95 in Muon's place": [
        Trial(f"decoupled_momentum,feedback=0.95,compression=frequencies:{number}", 0.007, 0.0, steps=SEARCH)
        for number in (256, 64, 16)
    ],
}


def frontier(options: Options, runs: Runs, run_all: Callable[[Sequence[Trial], Runs], None]) -> Result:
    """Loss over bytes, a curve a method."""
    ways = {name: [_short(trial) for trial in of] if options.quick else of for name, of in OTHERS.items()}
    run_all([trial for of in ways.values() for trial in of], runs)
    done = runs.read()
    figures: dict[str, Figure] = {}
    for number, (name, of) in enumerate(ways.items()):
        figures[f"way_{number}"] = name
        for trial in of:
            figures[f"way_{number}_at_{round(done[trial.id]['fewer_bytes'])}"] = done[trial.id]["valid"]
    return Result(figures)


def learning(options: Options, runs: Runs, run_all: Callable[[Sequence[Trial], Runs], None]) -> Result:
    trials = {rate: [_short(trial) for trial in of] if options.quick else of for rate, of in TRIALS.items()}
    full = 8 if options.quick else FULL
    run_all([trial for of in trials.values() for trial in of], runs)
    chosen = {rate: best(of, runs) for rate, of in trials.items()}
    anew = {rate: [replace(of, steps=full, seed=seed) for seed in SEEDS] for rate, of in chosen.items()}
    twice = {rate: [replace(of, steps=2 * full, seed=SEEDS[0])] for rate, of in chosen.items()}
    run_all([trial for of in (anew, twice) for each in of.values() for trial in each], runs)
    figures: dict[str, Figure] = {}
    for rate in RATES:
        gaps = gaps_between(anew[rate], anew[SYNCHRONOUS], runs)
        figures |= {
            f"loss_gap_{rate}": statistics.mean(gaps) + statistics.stdev(gaps) / len(gaps) ** 0.5,
            f"loss_gap_{rate}_mean": statistics.mean(gaps),
            f"loss_gap_{rate}_first_seed": gaps[0],
            f"loss_gap_{rate}_twice_the_tokens": gaps_between(twice[rate], twice[SYNCHRONOUS], runs)[0],
            f"fewer_bytes_{rate}": min(runs.read()[trial.id]["fewer_bytes"] for trial in anew[rate]),
            f"plan_{rate}": chosen[rate].plan,
            f"plan_hash_{rate}": runs.read()[chosen[rate].id]["plan_hash"],
        }
    losses = {str(rate): [runs.read()[trial.id]["test"] for trial in of] for rate, of in anew.items()}
    figures |= {
        "loss_synchronous": statistics.mean(losses[str(SYNCHRONOUS)]),
        "num_tokens": anew[SYNCHRONOUS][0].num_tokens,
    }
    figures |= {"num_parameters": runs.read()[chosen[SYNCHRONOUS].id]["num_parameters"]}
    return Result(figures, losses)


def best(trials: Sequence[Trial], runs: Runs) -> Trial:
    done = runs.read()
    return min(trials, key=lambda trial: done[trial.id]["valid"])


def gaps_between(trials: Sequence[Trial], synchronous: Sequence[Trial], runs: Runs) -> list[float]:
    """Relative, seed by seed."""
    done = runs.read()
    return [done[a.id]["test"] / done[b.id]["test"] - 1 for a, b in zip(trials, synchronous, strict=True)]


def _short(trial: Trial) -> Trial:
    return replace(trial, steps=4, plan=re.sub(r"every=\d+", "every=2", trial.plan))


# -- speed -----------------------------------------------------------------------------------------------------------

SPEED = ("utilization", "speedup_of_possible", "utilization_bad_bbr", "utilization_bad_cubic")
ROUNDS = 5  # whole ones, after the first
NEVER, ALONE = 24, 8  # steps without an exchange, and of the first island while the others are stopped


def speed(options: Options, plans: Mapping[int, str]) -> Result:
    """`plans`: by rate, as the command line has them."""
    import _far
    from konvoi.lab import Link

    shape = _far.QUICK if options.quick else _far.Shape()
    never, alone = (8, 3) if options.quick else (NEVER, ALONE)
    bad = {"up": 20, "down": 20, "rtt": 200, "loss": 0.01, "burst": 3}
    links = {
        "utilization": (plans[100], Link()),
        "utilization_bad_bbr": (plans[400], Link(**bad, congestion="bbr")),
        "utilization_bad_cubic": (plans[400], Link(**bad, congestion="cubic")),
    }
    free, alone_s = _free(_far, shape, never, alone)
    frees = [free]
    figures: dict[str, Figure] = {"alone_ratio": alone_s / free}
    for name, (text, link) in links.items():
        every = every_of(text, options)
        convoy = replace(_convoy(text), every=every)
        rounds = 1 if options.quick else ROUNDS
        say(f"{name}: {text} over {link.describe()}")
        trace = _far.train(convoy, link, _far.job(shape, every * (rounds + 1) + 1))
        step_s = trace.step_s(every, every * (rounds + 1))
        if name == "utilization":  # beside what it is compared with
            figures |= _others(_far, shape, step_s, every_of(plans[100], options), options)
        frees.append(_free(_far, shape, never, 0)[0])
        free_s = statistics.mean(frees[-2:])
        figures |= {
            name: free_s / step_s,
            f"{name}_step_s": step_s,
            f"{name}_free_step_s": free_s,
            f"{name}_mb_sent": max(trace.sent) / 1e6,
            f"{name}_plan": text,
            f"{name}_plan_hash": _convoy(text).hash,
        }
    torchft_s = figures["torchft_step_s"]
    figures["torchft_utilization"] = frees[0] / torchft_s if isinstance(torchft_s, float) else "did not run"
    return Result(figures | spread("free_step_s", frees), {"free_step_s": frees})


def _others(far: Any, shape: Any, step_s: float, every: int, options: Options) -> dict[str, Figure]:
    """torch DDP over the same link and without any, and torchft's DiLoCo."""
    from konvoi.lab import Link

    steps = 4 if options.quick else 11
    alone, ddp = (far.data_parallel(Link(), shape, steps, exchange=exchange) for exchange in (False, True))
    try:
        torchft_s: float | str = far.torchft(Link(), shape, every, 2)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        torchft_s = f"did not run: {error}"
    return {
        "torchft_step_s": torchft_s,
        "ddp_step_s": ddp,
        "ddp_compute_step_s": alone,
        "speedup": ddp / step_s,
        "speedup_possible": ddp / alone,
        "speedup_of_possible": alone / step_s,
    }


def _free(far: Any, shape: Any, steps: int, alone: int) -> tuple[float, float]:
    """Seconds of a step of islands that never exchange, and of the first while the others are stopped, for `alone`
    steps."""
    from konvoi.lab import Link
    from konvoi.plan.convoy import Convoy

    held: list[Any] = []

    def on_step(lab: Any, name: str, step: int) -> None:
        if alone and name == "island-0" and step == steps + 1:
            held.append(far.stopped(lab.hosts[1:]))
            held[0].__enter__()
        elif alone and name == "island-0" and step == steps + 1 + alone:
            held[0].__exit__(None, None, None)

    total = steps + alone + 1
    trace = far.train(Convoy(every=total + 1), Link(), far.job(shape, total), on_step)
    first = trace.ends["island-0"]
    before = replace(trace, ends={name: ends[:steps] for name, ends in trace.ends.items()})
    alone_s = (first[steps + alone] - first[steps + 1]) / (alone - 1) if alone else math.nan
    return before.step_s(4, steps), alone_s


def every_of(text: str, options: Options) -> int:
    return 2 if options.quick else int(_convoy(text).every)


def _convoy(text: str) -> Any:
    from konvoi.plan.convoy import Plan
    from konvoi.plan.presets import parse

    plan = parse(f"|{text}")
    assert isinstance(plan, Plan)
    return plan.convoy


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--part", choices=("learning", "frontier", "speed"), default="learning")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished runs of the learning part are")
    parser.add_argument("--processes", type=int, default=2, help="its runs at a time")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    runs = Runs(args.runs)
    if args.trial:
        runs.add(read_trial(args.trial, Trial).run())
    elif args.part == "speed":
        plans = {rate: TRIALS[rate][0].plan for rate in (100, 400)}
        if not runs.missing([trial for rate in plans for trial in TRIALS[rate]]):
            plans = {rate: best(TRIALS[rate], runs).plan for rate in plans}
        else:
            say("the learning part has not chosen yet: the first plan of each rate is taken")
        _harness.main("wan_speed", SPEED, lambda options: speed(options, plans), argv=rest)
    else:
        run_all = functools.partial(in_processes, __file__, num_processes=args.processes)
        with tempfile.TemporaryDirectory() as folder:  # what a quick look runs is not kept
            short = Runs(Path(folder) / "runs")

            part = learning if args.part == "learning" else frontier

            def measure(options: Options) -> Result:
                return part(options, short if options.quick else runs, run_all)

            _harness.main(f"wan_{args.part}", LEARNING if part is learning else (), measure, argv=rest)


if __name__ == "__main__":
    main()

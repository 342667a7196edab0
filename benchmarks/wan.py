"""Islands far apart: what is learnt over a few bytes, and how much of their time they train.

    python benchmarks/wan.py --part learning --json        hours, at the first time: runs accumulate in results/

**learning**: four islands against synchronous training at equal tokens. For each of five rates of bytes (data
parallelism's own, and a 25th, 100th, 400th and 1000th of it) the best of as many trials is taken on one held-out split,
at half the length; it is trained anew from other seeds, in full, and compared on another split. `loss_gap_R` is the
mean of the seeds' relative gaps and one standard error. `_learning.py` is one run.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import _harness
from _harness import Figure, Options, Result, say
from _learning import Runs, Trial

RATES = (25, 100, 400, 1000)
LEARNING = tuple(f"loss_gap_{rate}" for rate in RATES)
FULL, SEARCH, SEEDS = 3000, 1500, (1, 2, 3)
RUNS = _harness.RESULTS / "learning.jsonl"


def candidates(plan: str, rates: Sequence[tuple[float, float]], *others: Trial) -> list[Trial]:
    """`rates`: (lr, momentum) of Muon."""
    return [*(Trial(plan, lr, momentum, steps=SEARCH) for lr, momentum in rates), *others]


SYNCHRONOUS = 1
EVERY_1, EVERY_4, EVERY_14, EVERY_34 = (
    f"convoy,every={every},compression=low_bit:1{ahead}"
    for every, ahead in ((1, ""), (4, ",ahead=1"), (14, ",ahead=3"), (34, ",ahead=3"))
)
# The same number for each, at half the length.
TRIALS: dict[int, list[Trial]] = {
    SYNCHRONOUS: candidates(
        "", [(0.005, 0.95), (0.007, 0.95), (0.01, 0.95), (0.014, 0.95), (0.007, 0.975), (0.01, 0.9)]
    ),
    25: candidates(
        EVERY_1, [(0.007, 0.95), (0.01, 0.95), (0.014, 0.95), (0.007, 0.975), (0.01, 0.975), (0.014, 0.975)]
    ),
    100: candidates(
        EVERY_4, [(0.007, 0.95), (0.01, 0.95), (0.014, 0.95), (0.007, 0.975), (0.01, 0.975), (0.014, 0.975)]
    ),
    400: candidates(
        EVERY_14,
        [(0.007, 0.95), (0.01, 0.95), (0.014, 0.95), (0.01, 0.975)],
        Trial(f"{EVERY_14},outer_momentum=0.2", 0.01, steps=SEARCH),
        Trial(f"{EVERY_14},fragments=2", 0.01, steps=SEARCH),
    ),
    1000: candidates(
        EVERY_34,
        [(0.007, 0.95), (0.01, 0.95), (0.014, 0.95), (0.01, 0.975)],
        Trial(f"{EVERY_34},outer_momentum=0.3", 0.01, steps=SEARCH),
        Trial(f"{EVERY_34},fragments=2", 0.01, steps=SEARCH),
    ),
}


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
    return replace(trial, steps=4, plan=trial.plan.replace("every=14", "every=2").replace("every=34", "every=4"))


def in_processes(trials: Sequence[Trial], runs: Runs, num_processes: int) -> None:
    """Those that are missing, each in a process of its own with one thread."""
    missing = runs.missing(trials)

    def run(number: int) -> None:
        say(f"run {number + 1}/{len(missing)}: {missing[number]}")
        subprocess.run(
            [sys.executable, __file__, "--trial", repr(missing[number]), "--runs", str(runs.path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )

    with ThreadPoolExecutor(num_processes) as pool:
        list(pool.map(run, range(len(missing))))


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--part", choices=("learning",), default="learning")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished runs are")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    runs = Runs(args.runs)
    if args.trial:
        runs.add(_read(args.trial).run())
        return
    run_all = functools.partial(in_processes, num_processes=args.processes)
    with tempfile.TemporaryDirectory() as folder:  # what a quick look runs is not kept
        short = Runs(Path(folder) / "runs")

        def measure(options: Options) -> Result:
            return learning(options, short if options.quick else runs, run_all)

        _harness.main("wan_learning", LEARNING, measure, argv=rest)


def _read(text: str) -> Trial:
    """
    >>> _read(repr(Trial("", 0.01, seed=3))).seed
    3
    """
    import ast

    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    return Trial(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})


if __name__ == "__main__":
    main()

"""Twenty hospitals learn from chest X-rays that stay with them, against the same model with all images in one place.

    python benchmarks/xray.py --json        about five hours of one core at the first time: runs accumulate in results/

PneumoniaMNIST as it is in recipes/data, without doubles; 20 hospitals, each class divided by Dirichlet(0.3). For either
way as many settings (`_xray_settings.py`) are trained from one seed, and what the best three change also together; the
four that are best on the validation split then from two more seeds, and the best by the mean of three is taken. From
five other seeds it is then scored on the test split, which nothing before has looked at. `pooled_auc` and `fedavg_auc`
are means over these seeds, of the weights behind the last step; `..._low` and `..._high` are the 95 % interval of a
bootstrap over test images; that of `gap`, pooled less FedAvg, draws the same images for both. How much a seed changes
stands in docs/xray.md, with other algorithms and partitions, which the same command trains: `docs/make_xray.py` writes
it. `_xray.py` is one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import _harness
from _auc import interval, resampled
from _harness import Options, Result
from _runs import Runs, in_processes, read_trial
from _xray import Trial, splits
from _xray_settings import DIRICHLET, FEDAVG, PARTITIONS, POOLED, Setting, algorithms

KEYS = (
    *(f"{name}{end}" for name in ("pooled_auc", "fedavg_auc", "gap") for end in ("", "_low", "_high")),
    "num_seeds",
)
RUNS = _harness.RESULTS / "xray.jsonl"
SEEDS, SEEDS_OF_TABLE = (1, 2, 3, 4, 5), (1, 2, 3)
AGAIN, SEEDS_AGAIN = 4, (100, 101)  # the best of a search, and from which seeds they are trained again


@dataclass(frozen=True)
class Study:
    """What is asked, and how large."""

    pooled: Sequence[Trial] = POOLED
    fedavg: Sequence[Setting] = FEDAVG
    again: tuple[int, ...] = SEEDS_AGAIN
    seeds: tuple[int, ...] = SEEDS
    table_seeds: tuple[int, ...] = SEEDS_OF_TABLE
    partitions: tuple[str, ...] = PARTITIONS
    names: tuple[str, ...] = ("fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "fedbuff", "alone")
    settings: int = 3


QUICK = Study(
    pooled=tuple(replace(trial, epochs=1, depth=3) for trial in POOLED[:2]),
    fedavg=(Setting("rounds=1"),),
    again=(),
    seeds=(1, 2),
    table_seeds=(1,),
    partitions=(DIRICHLET,),
    names=("scaffold",),
    settings=1,
)

Train = Callable[[Sequence[Trial], Runs], None]
S = TypeVar("S", Trial, Setting)


def together(settings: Sequence[S], order: Sequence[int]) -> list[S]:
    """What the best three change of the first setting, by twos and all: four settings, less those that contradict.

    >>> trials = [Trial("", 0.1), Trial("", 0.2), Trial("", 0.1, epochs=3)]
    >>> [(one.lr, one.epochs) for one in together(trials, [1, 2, 0])]
    [(0.2, 3)]
    """
    first = settings[0]
    changes = [_change(settings[place], first) for place in order if place][:3]
    made = []
    for some in (pair for size in (2, 3) for pair in itertools.combinations(changes, size)):
        names = [name for change in some for name in change]
        if len(names) == len({*names}):
            made.append(replace(first, **{name: value for change in some for name, value in change.items()}))
    return made


def _change(setting: Any, first: Any) -> dict[str, Any]:
    values = {one.name: getattr(setting, one.name) for one in dataclasses.fields(setting)}
    return {name: value for name, value in values.items() if value != getattr(first, name)}


def searched(
    asked: Sequence[S], trial: Callable[[S], Trial], study: Study, runs: Runs, train: Train
) -> tuple[list[S], S]:
    """All that was asked, and the best: on the validation split, by the mean over seeds of those trained again."""

    def order(settings: Sequence[S]) -> list[int]:
        done = runs.read()
        return sorted(range(len(settings)), key=lambda place: -done[trial(settings[place]).id]["valid_auc"])

    train([trial(setting) for setting in asked], runs)
    settings = [*asked, *(together(asked, order(asked)) if study.again else ())]
    train([trial(setting) for setting in settings], runs)
    best = [settings[place] for place in order(settings)[: AGAIN if study.again else 1]]
    seeds = [[trial(one), *(replace(trial(one), seed=seed) for seed in study.again)] for one in best]
    train([one for of in seeds for one in of], runs)
    done = runs.read()
    means = [statistics.mean(done[one.id]["valid_auc"] for one in of) for of in seeds]
    return settings, best[means.index(max(means))]


@dataclass(frozen=True)
class Chosen:
    pooled: Trial
    fedavg: Setting
    of_pooled: tuple[Trial, ...]  # among which
    of_fedavg: tuple[Trial, ...]

    def headline(self, study: Study) -> tuple[list[Trial], list[Trial]]:
        """The runs that are compared, on the test split."""
        pooled = [replace(self.pooled, seed=seed, told="scores") for seed in study.seeds]
        return pooled, [self.fedavg.trial(self.pooled, seed=seed, told="scores") for seed in study.seeds]

    def table(self, study: Study, name: str, setting: Setting, partition: str) -> list[Trial]:
        """The runs of a cell of the table."""
        if name == "fedavg" and partition == DIRICHLET:
            return self.headline(study)[1]
        if name == "alone":
            alone = replace(self.pooled, plan="alone", partition=partition, told="test")
            return [replace(alone, seed=seed) for seed in study.table_seeds]
        return [setting.trial(self.pooled, name, partition, seed=seed, told="test") for seed in study.table_seeds]


def choose(study: Study, runs: Runs, train: Train) -> Chosen:
    of_pooled, pooled = searched(study.pooled, lambda trial: trial, study, runs, train)
    of_fedavg, fedavg = searched(study.fedavg, lambda setting: setting.trial(pooled), study, runs, train)
    return Chosen(pooled, fedavg, tuple(of_pooled), tuple(setting.trial(pooled) for setting in of_fedavg))


def settings(found: Chosen, study: Study, runs: Runs, train: Train) -> dict[str, Setting]:
    """Each algorithm's own, the best of few from one seed."""
    asked = {name: of[: study.settings] for name, of in algorithms(found.fedavg).items() if name in study.names}
    trials = {name: [setting.trial(found.pooled, name) for setting in of] for name, of in asked.items()}
    train([trial for of in trials.values() for trial in of], runs)
    done = runs.read()
    best = {
        name: of[max(range(len(of)), key=lambda place, n=name: done[trials[n][place].id]["valid_auc"])]
        for name, of in asked.items()
    }
    return {"fedavg": found.fedavg, **best, **({"alone": found.fedavg} if "alone" in study.names else {})}


def measure(options: Options, runs: Runs, train: Train) -> Result:
    study = QUICK if options.quick else Study()
    found = choose(study, runs, train)
    pooled, fedavg = found.headline(study)
    train([*pooled, *fedavg], runs)
    cells = [
        trial
        for name, setting in settings(found, study, runs, train).items()
        for partition in study.partitions
        for trial in found.table(study, name, setting, partition)
    ]
    train(cells, runs)
    return compared(pooled, fedavg, runs)


def compared(pooled: Sequence[Trial], fedavg: Sequence[Trial], runs: Runs) -> Result:
    done, labels = runs.read(), splits()["test"][1]
    each = {"pooled": [done[trial.id] for trial in pooled], "fedavg": [done[trial.id] for trial in fedavg]}
    means = {name: statistics.mean(run["test_auc"] for run in of) for name, of in each.items()}
    drawn = {name: resampled([np.array(run["scores"]) for run in of], labels) for name, of in each.items()}
    figures: dict[str, Any] = {}
    for key, value, values in (
        ("pooled_auc", means["pooled"], drawn["pooled"]),
        ("fedavg_auc", means["fedavg"], drawn["fedavg"]),
        ("gap", means["pooled"] - means["fedavg"], drawn["pooled"] - drawn["fedavg"]),
    ):
        low, high = interval(values)
        figures |= {key: value, f"{key}_low": low, f"{key}_high": high}
    aucs = {f"{name}_auc_of_seeds": [run["test_auc"] for run in of] for name, of in each.items()}
    return Result(figures | {"num_seeds": len(pooled)}, aucs)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished runs are")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.trial:
        Runs(args.runs).add(read_trial(args.trial, Trial).run())
        return
    train = functools.partial(in_processes, __file__, num_processes=args.processes)
    with tempfile.TemporaryDirectory() as folder:  # what a quick look runs is not kept

        def ask(options: Options) -> Result:
            return measure(options, Runs(Path(folder) / "runs" if options.quick else args.runs), train)

        _harness.main("xray", KEYS, ask, argv=rest)


if __name__ == "__main__":
    main()

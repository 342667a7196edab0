"""Write docs/xray.md from benchmarks/results/xray.jsonl: `python docs/make_xray.py`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import _xray  # noqa: E402
import xray  # noqa: E402
from _runs import Runs  # noqa: E402

PAGE = Path(__file__).parent / "xray.md"
Done = Mapping[str, Mapping[str, Any]]

HEAD = """\
<!-- Made by docs/make_xray.py from benchmarks/results/xray.jsonl: run benchmarks/xray.py, then `make docs`. -->
# Twenty hospitals and their chest X-rays

    python benchmarks/xray.py --json

PneumoniaMNIST (MedMNIST v2, Yang et al., 2023, from Kermany et al., 2018; CC BY 4.0), 28×28, normal or pneumonia. The
training part in recipes/data is **not** the published one: it has {stored:,} images instead of 4,708, {normal} of them
normal instead of 1,214. {across} of its images are in the validation part as well and are left out, {within} more are
doubles of another training image and are left out, so that {train:,} remain. Validation has {valid} images, test {test}
({test_normal} normal). None of them is in another part; {twice} test images are there twice and stay, as published.

One model throughout: {depth} blocks of 3×3 convolution and GroupNorm, {channels} channels in the first. Twenty
hospitals are simulated (`kv.fleet.simulated`). The figure is the area under the ROC curve on the test part, of the
weights behind the last step. Settings are chosen on the validation part: as many for pooled training as for FedAvg,
then three for every other algorithm, around what FedAvg has found, on Dirichlet 0.3.
"""

NOISE = """\
## How much of it is noise

{test} test images, {test_normal} of them normal, give an AUC of this size a standard error of about 0.01, whatever is
trained. The intervals draw test images anew, a thousand times, and hold the seeds as they are; that of the difference
draws the same images for both, so it is narrower than the two suggest. The ± is the standard error over seeds, which
change the initial weights, the order of images and who has which: with three seeds it is a rough figure itself. Rows
that lie within 0.01 of each other are not told apart by this table. Only {normal} training images are normal: on
Dirichlet 0.3 a hospital has {fewest} to {most} of them, and {none} of {hospitals} have none.

The validation part was drawn from the source's training set, as the training part was; the test part is the source's
own. The former is the easier one, so that it tells settings apart badly, and what is best there need not be best on the
test part. No setting was chosen by the test part.
"""

ALGORITHMS = """\
Test AUC, mean ± standard error over (so many) seeds. Alike: images are dealt out at random. Dirichlet 0.3: each class
by shares of its own, so that hospitals differ in size and in kind. Two shards each: images are sorted by class and cut
into forty, so that most hospitals have one class alone; this is the end beyond Dirichlet, which has unequal sizes
already. A hospital alone is trained as the pooled model is, for 200 steps at least; its figure is the mean over the
hospitals, of which those with one class cannot learn what is asked.
"""
STUDY = xray.Study()
NAMES = {
    "alone": "each hospital alone",
    "iid": "alike",
    "shards:2": "two shards each",
    xray.DIRICHLET: "Dirichlet 0.3",
}


def page(done: Done, study: xray.Study = STUDY) -> str:
    runs = _Done(done)
    try:
        found = xray.choose(study, runs, runs.check)
    except KeyError:
        return HEAD.format(**_data(study.pooled[0])) + "\nNot run yet.\n"
    data = _data(found.pooled)
    parts = [HEAD.format(**data), *_compared(found, study, runs), *_algorithms(found, study, runs)]
    return "\n".join([*parts, NOISE.format(**data), *_searched(found, study, runs)])


class _Done(Runs):
    """Finished runs that nothing is added to."""

    def __init__(self, done: Done) -> None:
        self.done = done

    def read(self) -> dict[str, Mapping[str, Any]]:
        return dict(self.done)

    def check(self, trials: Sequence[xray.Trial], runs: Runs) -> None:
        """Raises: KeyError where one of them has not been run."""
        if missing := runs.missing(trials):
            raise KeyError(missing[0].id)


def _data(trial: xray.Trial) -> dict[str, Any]:
    import numpy as np

    archive, parts = np.load(_xray.DATA), _xray.splits()
    left_out = _xray.kept()[1]
    labels, trained = archive["train_labels"].reshape(-1), parts["train"]
    source = _xray.Xrays().prepare().train
    normals = [
        int((trained[1][rows] == 0).sum())
        for seed in STUDY.seeds
        for rows in _xray.partition(xray.DIRICHLET, seed).of(source)
    ]
    return {
        "fewest": min(normals),
        "most": max(normals),
        "none": normals.count(0),
        "hospitals": f"{len(normals)} (twenty, {len(STUDY.seeds)} seeds)",
        "stored": len(labels),
        "normal": int((labels == 0).sum()),
        "across": left_out["left_out_across_splits"],
        "within": left_out["left_out_within_train"],
        "twice": left_out["doubles_within_test"],
        "train": len(parts["train"][1]),
        "valid": len(parts["valid"][1]),
        "test": len(parts["test"][1]),
        "test_normal": int((parts["test"][1] == 0).sum()),
        "depth": trial.depth,
        "channels": trial.channels,
    }


def _compared(found: xray.Chosen, study: xray.Study, runs: _Done) -> list[str]:
    pooled, fedavg = found.headline(study)
    lines = ["## Pooled, and FedAvg on Dirichlet 0.3", ""]
    try:
        runs.check([*pooled, *fedavg], runs)
    except KeyError:
        return [*lines, "Not run yet.", ""]
    figures = xray.compared(pooled, fedavg, runs).figures
    lines += [f"| | test AUC, mean of {len(study.seeds)} seeds | 95 % interval | ± over seeds |", "|---|---|---|---|"]
    each = {
        "pooled": [runs.done[trial.id]["test_auc"] for trial in pooled],
        "FedAvg": [runs.done[trial.id]["test_auc"] for trial in fedavg],
    }
    each["pooled less FedAvg"] = [a - b for a, b in zip(*each.values(), strict=True)]
    for (name, values), key in zip(each.items(), ("pooled_auc", "fedavg_auc", "gap"), strict=True):
        low, high = figures[f"{key}_low"], figures[f"{key}_high"]
        lines.append(f"| {name} | {figures[key]:.4f} | {low:.4f} to {high:.4f} | {_stderr(values):.4f} |")
    return [*lines, ""]


def _algorithms(found: xray.Chosen, study: xray.Study, runs: _Done) -> list[str]:
    lines = [
        "## Algorithms and partitions",
        "",
        *ALGORITHMS.splitlines(),
        "",
        "| | " + " | ".join(NAMES[partition] for partition in study.partitions) + " |",
        "|---" * (1 + len(study.partitions)) + "|",
    ]
    try:
        own = xray.settings(found, study, runs, runs.check)
    except KeyError:
        own = {"fedavg": found.fedavg, "alone": found.fedavg}
    for name in ("fedavg", *study.names):
        cells = [
            _cell(found.table(study, name, own[name], one) if name in own else (), runs) for one in study.partitions
        ]
        lines.append(f"| {NAMES.get(name, f'`{name}`')} | " + " | ".join(cells) + " |")
    told = [
        f"- `{setting.trial(found.pooled, name).plan}`, lr {setting.lr:g}"
        for name, setting in own.items()
        if name != "alone"
    ]
    return [*lines, "", "The settings, on every partition alike:", "", *told, ""]


def _cell(trials: Sequence[xray.Trial], runs: _Done) -> str:
    values = [runs.done[trial.id]["test_auc"] for trial in trials if trial.id in runs.done]
    if not values or len(values) < len(trials):
        return "not run"
    return f"{statistics.mean(values):.3f} ± {_stderr(values):.3f} ({len(values)})"


def _stderr(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _searched(found: xray.Chosen, study: xray.Study, runs: _Done) -> list[str]:
    ways = {"Pooled": study.pooled, "FedAvg": [setting.trial(found.pooled) for setting in study.fedavg]}
    lines = [
        "## What was searched",
        "",
        "AUC on the validation part; of the best four the mean of three seeds, too.",
        "",
    ]
    for name, trials in ways.items():
        lines += [f"| {name} | one seed | three seeds |", "|---|---|---|"]
        for trial in trials:
            again = [runs.done.get(xray.replace(trial, seed=seed).id) for seed in (trial.seed, *study.again)]
            three = statistics.mean(run["valid_auc"] for run in again if run) if all(again) else None
            mean = "" if three is None else f"{three:.4f}"
            lines.append(f"| {_words(trial)} | {runs.done[trial.id]['valid_auc']:.4f} | {mean} |")
        lines.append("")
    return lines


def _words(trial: xray.Trial) -> str:
    """What a person would want to know of a setting."""
    plan = f"`{trial.plan}`, " if trial.plan else f"{trial.epochs:g} epochs, "
    values = {
        "lr": trial.lr,
        "momentum": trial.momentum,
        "weight decay": trial.weight_decay,
        "depth": trial.depth,
        "channels": trial.channels,
        "batch": trial.batch,
        "smoothing": trial.smoothing,
        "normals count": trial.normals,
    }
    usual = {"smoothing": 0.0, "normals count": 1.0, "batch": 32, "momentum": 0.0}
    shown = (f"{name} {value:g}" for name, value in values.items() if usual.get(name) != value)
    return f"{plan}{', '.join(shown)}, augment: {trial.augment}, {trial.schedule}"


if __name__ == "__main__":
    PAGE.write_text(page(Runs(xray.RUNS).read()))

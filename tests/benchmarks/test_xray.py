"""The pure parts of xray.py: the figure, its interval, what is left out, and who is chosen from which runs."""

import dataclasses
import json

import numpy as np
import pytest

import _xray
import xray
from _auc import auc, interval, resampled
from _runs import Runs
from _xray import AUGMENTS, Augment, Trial
from docs import make_xray

LABELS = np.array([0, 1] * 40)


def some_scores(seed, *, digits=9):
    draw = np.random.default_rng(seed)
    return np.round(LABELS + draw.normal(size=len(LABELS)), digits)


@pytest.mark.parametrize("digits", [9, 0])  # 0: many are equal
def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order(digits):
    scores = some_scores(3, digits=digits)
    ill, healthy = scores[LABELS == 1][:, None], scores[LABELS == 0][None]
    pairs = ((ill > healthy) + 0.5 * (ill == healthy)).mean()
    assert auc(scores, LABELS) == pytest.approx(pairs, abs=1e-12)


def test_an_interval_is_the_same_every_time_and_about_as_wide_as_theory_has_it():
    scores = some_scores(0)
    values = resampled([scores], LABELS)
    assert len(values) == 1000
    assert np.array_equal(values, resampled([scores], LABELS))
    low, high = interval(values)
    area, n = auc(scores, LABELS), len(LABELS) // 2
    # Hanley and McNeil, Radiology 143, 1982.
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    stderr = ((area * (1 - area) + (n - 1) * (first + second - 2 * area**2)) / n**2) ** 0.5
    assert low < area < high
    assert high - low == pytest.approx(2 * 1.96 * stderr, rel=0.2)


def test_two_models_are_compared_over_the_same_images():
    scores = some_scores(0)
    apart = resampled([scores], LABELS) - resampled([scores * 3], LABELS)
    assert not apart.any()


def test_no_training_image_is_in_another_split_or_twice():
    rows, told = _xray.kept()
    assert told == {"left_out_across_splits": 10, "left_out_within_train": 15, "doubles_within_test": 3}
    parts = {name: [image.tobytes() for image in images] for name, (images, _) in _xray.splits().items()}
    assert len(rows) == len(parts["train"]) == len({*parts["train"]}) == 3857
    assert not {*parts["train"]} & {*parts["valid"], *parts["test"]}
    assert (_xray.splits()["train"][1] == 0).sum() == 388


@pytest.mark.parametrize("name", [name for name, one in AUGMENTS.items() if one])
def test_an_image_that_was_changed_is_still_one(name):
    image = np.random.default_rng(0).random((1, 28, 28), dtype=np.float32)
    found = AUGMENTS[name]({"inputs": image, "labels": 1}, np.random.default_rng(0))
    assert found["labels"] == 1
    assert found["inputs"].shape == image.shape
    assert found["inputs"].dtype == np.float32
    assert 0 <= found["inputs"].min() <= found["inputs"].max() <= 1
    assert not np.array_equal(found["inputs"], image)


def test_what_is_turned_by_nothing_stays_as_it_is():
    image = np.random.default_rng(0).random((1, 28, 28), dtype=np.float32)
    found = Augment(turn=1e-9)({"inputs": image}, np.random.default_rng(1))["inputs"]
    assert np.allclose(found, image, atol=1e-6)


def test_a_class_that_counts_more_weighs_more_and_what_is_left_out_nothing():
    import torch

    batch = {"inputs": torch.tensor([[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]), "labels": torch.tensor([0, 1, 1])}
    rows = torch.tensor([False, False, True])
    objective = _xray.Weighted(normals=4.0)
    loss, weight = objective(torch.nn.Identity(), objective.without(batch, rows))
    assert weight.item() == 5.0
    assert loss.item() == pytest.approx(4 * np.log(1 + np.e) + np.log(1 + np.e**2), rel=1e-6)


# -- the study ---------------------------------------------------------------------------------------------------------

STUDY = dataclasses.replace(xray.Study(), partitions=(xray.DIRICHLET,))


def made_up(trial):
    """The rate 0.02, and FedAvg with half the batch, are best; but not from other seeds."""
    good = 0.9 + 0.05 * (trial.lr == 0.02) + 0.05 * (trial.batch == 16) - 0.1 * (trial.seed >= 100) * (trial.lr == 0.02)
    scores, draw = [], np.random.default_rng(trial.seed + 10 * bool(trial.plan))
    if trial.told == "scores":
        scores = (_xray.splits()["test"][1] + draw.normal(size=624)).round(3).tolist()
    return {"id": trial.id, **dataclasses.asdict(trial), "valid_auc": good, "test_auc": good, "scores": scores}


@pytest.fixture
def train():
    """Runs nothing, and counts."""

    def run(trials, runs):
        for trial in runs.missing(trials):
            run.seen.append(trial)
            runs.add(made_up(trial))

    run.seen = []
    return run


def test_a_study_is_gone_on_with_where_it_ended(train, tmp_path):
    runs = Runs(tmp_path / "runs.jsonl")
    whole = xray.measure(xray.Options(), runs, train)
    assert set(whole.figures) == set(xray.KEYS)
    assert len({trial.id for trial in train.seen}) == len(train.seen) == len(runs.read())
    lines = runs.path.read_text().splitlines()
    runs.path.write_text("".join(f"{line}\n" for line in lines[:-7]))
    train.seen.clear()
    assert xray.measure(xray.Options(), runs, train).figures == whole.figures
    assert len(train.seen) == 7
    train.seen.clear()
    assert xray.measure(xray.Options(), runs, train).figures == whole.figures
    assert train.seen == []


def test_the_test_split_chooses_nothing_and_the_best_of_one_seed_has_to_be_it_again(train, tmp_path):
    runs = Runs(tmp_path / "runs.jsonl")
    found = xray.choose(STUDY, runs, train)
    assert {trial.told for trial in train.seen} == {"valid"}
    assert found.pooled.lr == 0.05  # 0.02 was lucky
    assert found.fedavg.batch == 16
    xray.settings(found, STUDY, runs, train)
    assert {trial.told for trial in train.seen} == {"valid"}
    assert len(xray.POOLED) == len(xray.FEDAVG)


def test_every_plan_of_the_study_is_one(train, tmp_path):
    from konvoi.plan.convoy import Plan
    from konvoi.plan.presets import parse

    runs = Runs(tmp_path / "runs.jsonl")
    xray.measure(xray.Options(), runs, train)
    for trial in train.seen:
        assert trial.plan in ("", "alone") or isinstance(parse(f"|{trial.plan}"), Plan)
        assert not trial.plan or _xray.partition(trial.partition, trial.seed).clients == 20


def test_the_page_is_made_from_the_runs_as_they_are():
    assert make_xray.PAGE.read_text() == make_xray.page(Runs(xray.RUNS).read()), "run `make docs`"


def test_the_page_says_what_has_not_been_run(train, tmp_path):
    assert "Not run yet" in make_xray.page({})
    runs = Runs(tmp_path / "runs.jsonl")
    xray.choose(STUDY, runs, train)
    assert "Not run yet" in make_xray.page(runs.read(), STUDY)
    xray.measure(xray.Options(), runs, train)
    whole = make_xray.page(runs.read())
    assert "ot run" not in whole
    for name in ("fedavg", "each hospital alone", "Dirichlet 0.3", "3,857"):
        assert name in whole


def test_a_trial_is_known_by_all_that_it_is():
    one = Trial("fedavg,rounds=2", 0.1)
    assert one.id == Trial("fedavg,rounds=2", 0.1).id != dataclasses.replace(one, seed=1).id
    assert json.loads(json.dumps(dataclasses.asdict(one)))["lr"] == 0.1

"""One data set becomes that of many clients."""

from __future__ import annotations

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import DataError
from konvoi.job.data.tensors import Arrays

LABELS = np.random.default_rng(0).integers(0, 10, 5000)
SOURCE = Arrays({"inputs": np.zeros((5000, 2)), "labels": LABELS})
ALL = {
    "iid": kv.data.iid(clients=50),
    "dirichlet": kv.data.dirichlet(clients=50, alpha=0.3),
    "shards": kv.data.shards(clients=50),
    "quantity": kv.data.quantity_skew(clients=50),
    "key": kv.data.by_key("labels"),
}


@pytest.mark.parametrize("name", ALL)
def test_everybody_gets_samples_and_each_is_somebodys(name):
    parts = ALL[name].of(SOURCE)
    assert sorted(np.concatenate(parts).tolist()) == list(range(5000))
    assert len(parts) == (10 if name == "key" else 50)
    assert min(map(len, parts)) >= 1
    assert [one.tolist() for one in parts] == [one.tolist() for one in ALL[name].of(SOURCE)]


def _unlike(parts):
    """Mean distance of a client's classes from everybody's, from 0 to 1."""
    everybody = np.bincount(LABELS, minlength=10) / len(LABELS)
    return np.mean([abs(np.bincount(LABELS[one], minlength=10) / len(one) - everybody).sum() / 2 for one in parts])


def test_the_smaller_alpha_the_less_alike():
    far, near = (kv.data.dirichlet(clients=20, alpha=alpha).of(SOURCE) for alpha in (0.1, 100))
    assert _unlike(far) > 0.5 > 0.2 > _unlike(near)
    assert _unlike(ALL["shards"].of(SOURCE)) > 0.6
    assert _unlike(ALL["quantity"].of(SOURCE)) < 0.2
    assert np.std([len(one) for one in ALL["quantity"].of(SOURCE)]) > 30


def test_another_seed_is_another_division():
    one, other = (kv.data.dirichlet(clients=20, alpha=0.5, seed=seed).of(SOURCE) for seed in (0, 1))
    assert [len(a) for a in one] != [len(b) for b in other]


def test_who_has_too_few_is_left_out():
    data = Arrays({"site": np.array(["a", "a", "b", "c", "c", "c"])})
    assert [one.tolist() for one in kv.data.by_key("site", least=2).of(data)] == [[0, 1], [3, 4, 5]]
    assert len(kv.data.by_key(lambda sample: str(sample["site"])).of(data)) == 3


@pytest.mark.parametrize(
    ("divide", "message"),
    [
        (lambda: kv.data.iid(clients=0), "a number of at least 1"),
        (lambda: kv.data.iid(clients=6000).of(SOURCE), "not enough samples"),
        (lambda: kv.data.dirichlet(clients=2, alpha=0), "alpha is above 0"),
        (lambda: kv.data.dirichlet(clients=2, alpha=1, by="label").of(SOURCE), "no such column"),
        (lambda: kv.data.dirichlet(clients=2, alpha=1, by="inputs").of(SOURCE), "holds no classes"),
        (lambda: kv.data.dirichlet(clients=50, alpha=0.01, least=99).of(SOURCE), "draws leave some client"),
        (lambda: kv.data.by_key("labels", least=9999).of(SOURCE), "nobody has so many"),
    ],
)
def test_what_cannot_be_divided_is_said(divide, message):
    with pytest.raises(DataError, match=message):
        divide()

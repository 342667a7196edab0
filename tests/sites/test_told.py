"""What sites tell of how good the weights are: where it is listed, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from konvoi.errors import PlanError
from konvoi.plan.federated import fedavg
from konvoi.security import pack as packs
from konvoi.sites import part
from konvoi.sites.adding import told_by
from konvoi.sites.orders import Order, Told
from konvoi.sites.trainer import Trainer
from konvoi.verbs import packing, runs
from konvoi.verbs.site import review
from tests.sites.conftest import Fake, make_pack
from tests.sites.test_wire_watch import RECIPE

ACCURACY = {"1": 0.5, "2": 0.75, "3": 0.625}  # by what a site's data are
STATISTICS = ("min", "p10", "median", "p90", "max", "std")


class Measures(Fake):
    """Knows what its weights come to, whether or not anybody is to be told."""

    def train(self, order, **given):
        found = super().train(order, **given)
        metrics = {"accuracy": ACCURACY[self.told.data], "secret": 7.0}
        return dataclasses.replace(found, valid_samples=int(self.told.data), metrics=metrics)


def federate(federation, tmp_path, monkeypatch, tell, process=Measures):
    monkeypatch.setattr(part, "Process", process)
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))
    pack = make_pack(tmp_path, fedavg(rounds=2, deadline_s=20.0), tell=tell)
    for name, data in zip("abc", ACCURACY, strict=True):
        federation.run(federation.site(name, pack, data=data))
    federation.submit(pack, first=3, least=3)
    return packs.read(pack)[0]


def ended(federation):
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    return federation.hosted().history()[-1]["told"], runs.as_table(runs.runs(federation.folder))


def test_what_is_listed_leaves_and_the_server_shows_how_unlike_sites_are(federation, tmp_path, monkeypatch):
    pack = federate(federation, tmp_path, monkeypatch, ("loss", "valid", "accuracy"))
    told, shown = ended(federation)
    values = np.array([*ACCURACY.values()])
    assert told["valid_accuracy"] == pytest.approx(np.average(values, weights=[1, 2, 3]))
    expected = [*np.quantile(values, [0.0, 0.1, 0.5, 0.9, 1.0]), values.std()]
    assert [told["spread"]["valid_accuracy"][name] for name in STATISTICS] == pytest.approx(expected)
    assert {*told["spread"]} == {"valid_loss", "valid_accuracy"}
    assert "study-1: held-out accuracy 0.6458; over 3 sites: min 0.5000 · p10 0.5250 · median 0.6250" in shown
    assert "secret" not in str(federation.hosted().history())
    house = federation.sites[0][0].house
    listed = next(line for line in review(house, pack.hash) if "valid_accuracy" in line)
    assert "accuracy of these weights on these samples" in listed


@pytest.mark.parametrize("tell", [("loss",), ("loss", "valid"), ()])
def test_what_is_not_listed_does_not_leave_and_is_not_shown(federation, tmp_path, monkeypatch, tell):
    pack = federate(federation, tmp_path, monkeypatch, tell)
    told, shown = ended(federation)
    names = {field.name for field in pack.leaves.frame("update").fields}
    assert "valid_accuracy" not in names
    assert ("valid_loss" in names) == ("valid" in tell)
    assert {*told.get("spread", {})} == ({"valid_loss"} if "valid" in tell else set())
    assert "accuracy" not in str(federation.hosted().history())
    assert "accuracy" not in shown
    assert ("held-out loss" in shown.partition("\n")[2]) == ("valid" in tell)


@pytest.mark.parametrize(
    "metrics", [{}, {"accuracy": float("nan")}, {"accuracy": "Mueller, Anna"}, {"accuracy": [1.0]}]
)
def test_a_figure_that_is_none_keeps_its_update_in_the_house(federation, tmp_path, monkeypatch, metrics):
    class Lacks(Fake):
        def train(self, order, **given):
            return dataclasses.replace(super().train(order, **given), metrics=metrics)

    federate(federation, tmp_path, monkeypatch, ("loss", "valid", "accuracy"), Lacks)
    federation.wait(lambda: "what it learnt is not finite" in " ".join(federation.said))
    assert federation.hosted().state.round == 1
    assert not federation.hosted().state.came


def test_sites_that_keep_no_samples_are_not_among_those_that_judge():
    class Came:
        weight = 1.0

        def __init__(self, name):
            self.site = self.hash = name

    figures = {
        "a": {"valid_loss": 2.0, "valid_samples": 4.0, "valid_accuracy": 0.5},
        "b": {"valid_loss": 0.0, "valid_samples": 0.0, "valid_accuracy": 0.0},
    }
    told = told_by([Came("a"), Came("b")], figures)
    assert told["valid_loss"] == 2.0
    assert told["valid_by_site"] == {"a": 2.0}
    assert told["spread"]["valid_accuracy"]["min"] == 0.5


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=draw.normal(size=(30, 3)).astype(np.float32), y=np.arange(30) % 2)
    (tmp_path / "study.py").write_text(RECIPE.format(example=tmp_path / "a.npz"))
    return tmp_path / "study.py"


def test_what_a_recipe_measures_can_be_listed_and_nothing_else(recipe, tmp_path):
    told = {"purpose": "x", "out": tmp_path / "x.pack"}
    _, made = packing.pack(recipe, tell=("valid", "accuracy"), **told)
    assert "valid_accuracy" in {field.name for field in made.leaves.frame("update").fields}
    with pytest.raises(PlanError, match="tells nothing of that kind") as raised:
        packing.pack(recipe, tell=("valid", "auc"), **told)
    assert raised.value.expected == "accuracy, loss, valid"
    with pytest.raises(PlanError, match="beside the loss on these samples") as raised:
        packing.pack(recipe, tell=("loss", "accuracy"), **told)
    assert "--tell valid,accuracy" in str(raised.value)
    for wrong in ("samples", "by_site", "of patients"):
        with pytest.raises(PlanError, match="tells nothing of that kind"):
            packing.pack(recipe, tell=("valid", wrong), **told)


def test_a_site_measures_what_the_objective_says(recipe, tmp_path):
    trainer = Trainer(Told(str(recipe), (), {"local": {}, "rounds": 2}, {}, str(tmp_path / "a.npz"), "a"))
    row = torch.cat([p.detach().reshape(-1) for p in trainer.parts.modules[0].parameters()])
    (tmp_path / "weights").write_bytes(row.numpy().astype("<f4").tobytes())
    order = Order(1, str(tmp_path / "weights"), "", str(tmp_path / "out"), str(tmp_path / "own"), {}, True)
    model = trainer.parts.modules[0]
    valid = trainer.prepared.splits.valid.columns
    with torch.no_grad():
        best = model(torch.from_numpy(valid["inputs"])).argmax(-1).numpy()
    found = trainer.round(order)
    assert found.metrics == {"accuracy": pytest.approx((best == valid["labels"]).mean())}
    assert found.valid_samples == len(valid["labels"]) == 6

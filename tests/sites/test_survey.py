"""What sites' data are like, asked before anything is trained: numpy's figures, over data that nobody has together."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest

from konvoi.errors import DataError, StateError
from konvoi.job.data.keyed import Keys
from konvoi.job.data.reading import read_stacked
from konvoi.security import outbox
from konvoi.security import pack as packs
from konvoi.sites import part, surveying
from konvoi.sites.dossier import page
from konvoi.sites.orders import Told
from konvoi.sites.trainer import Surveyor, Trainer
from konvoi.verbs import packing, runs
from konvoi.verbs.site import review

RECIPE = """
import numpy as np
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0)

def job():
    return kv.Job(
        model=kv.models.mlp(), data=kv.data.slot(read, example="{example}"), objective=kv.objectives.classification(),
    )
"""


NORMALIZED = RECIPE.replace("kv.data.slot(read", "kv.data.normalize(kv.data.slot(read").replace('}")', '}"))')
PLAN = "|fedavg,rounds=2,deadline_s=60"


class InProcess:
    """In place of the process that computes; what it has made can be looked at."""

    made: ClassVar = {}

    def __init__(self, told, folder):
        self.does = (Surveyor if told.kind == "survey" else Trainer)(told)
        self.made[told.kind, told.site] = self.does

    def train(self, order, *, most_s, is_over):
        return self.does.round(order)

    def end(self):
        pass


@pytest.fixture
def everybody(tmp_path):
    """Three sites' data, of which one has nobody of the last class."""
    draw = np.random.default_rng(0)
    sites = {}
    for number, (name, size) in enumerate((("a", 30), ("b", 7), ("c", 55))):
        x = (1e3 + draw.normal(number, 1 + number, size=(size, 2))).astype(np.float32)
        y = draw.integers(0, 2 if name == "b" else 3, size)
        sites[name] = (x, y)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    np.savez(tmp_path / "example.npz", x=np.zeros((6, 2), np.float32), y=np.arange(6) % 3)
    (tmp_path / "study.py").write_text(RECIPE.format(example=tmp_path / "example.npz"))
    return sites


@pytest.fixture
def pulled(federation, everybody, tmp_path, monkeypatch):
    """What a survey of the sites came to, for a recipe whose data are normalised; and its pack."""
    monkeypatch.setattr(part, "Process", InProcess)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))
    (tmp_path / "study.py").write_text(NORMALIZED.format(example=tmp_path / "example.npz"))
    path, _ = packing.pack_survey(tmp_path / "study.py", purpose="to know", out=tmp_path / "survey.pack")
    for name in everybody:
        federation.run(federation.site(name, path, data=str(tmp_path / f"{name}.npz")))
    run = federation.submit(path, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    return runs.pull(federation.folder, run.name, out=tmp_path / "pulled"), path


def test_sites_train_on_data_normalised_by_what_a_survey_has_found(federation, everybody, pulled, tmp_path):
    folder, survey = pulled
    path, made = packing.pack(
        tmp_path / "study.py", purpose="to learn", plan=PLAN, statistics=folder, out=tmp_path / "study.pack"
    )
    houses = {site.here.site: site.house for site, *_ in federation.sites}
    houses["c"].withdraw(packs.read(survey)[0])  # and yet it was agreed to
    for name, house in houses.items():
        house.approve(*house.take_in(path))
        lines = "\n".join(review(house, "study"))
        assert "normal    inputs: less the mean 1001" in lines, name
        assert "as 92 samples have told" in lines
        assert f"survey {packs.read(survey)[0].hash[:12]}, which was approved here: the word of" in lines
    assert "inputs is normalised" in page(houses["a"], "a", "test", ("x:1",))
    federation.submit(path, first=3)
    federation.wait(lambda: [one.is_over for one in federation.hall.runs.values()] == [True, True])
    x = np.concatenate([one.astype(np.float64) for one, _ in everybody.values()])
    for name, (own, _) in everybody.items():
        source = InProcess.made["recipe", name].prepared.splits.train
        rows = np.arange(len(own))
        found = read_stacked(source, Keys(0, np.zeros_like(rows), rows))["inputs"]
        expected = (own.astype(np.float64) - x.mean(0)) / x.std(0)
        assert np.allclose(found, expected, atol=1e-6), name
        assert name != "a" or abs(found.mean(0)).max() > 0.3  # and not by its own
    assert made.statistics["survey"] == packs.read(survey)[0].hash


def test_a_recipe_that_is_normalised_has_no_pack_without_statistics_and_no_others_have_one_with(pulled, tmp_path):
    folder, _ = pulled
    told = {"purpose": "x", "plan": PLAN, "out": tmp_path / "x.pack"}
    with pytest.raises(DataError, match="normalised by the statistics of the federation") as raised:
        packing.pack(tmp_path / "study.py", **told)
    assert "--survey" in str(raised.value)
    (tmp_path / "plain.py").write_text(RECIPE.format(example=tmp_path / "example.npz"))
    with pytest.raises(DataError, match="nothing in this recipe is normalised"):
        packing.pack(tmp_path / "plain.py", statistics=folder, **told)
    for wrong in ({"columns": {}}, {"columns": {"inputs": {"mean": [1.0]}}, "samples": 3}, []):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="no statistics"):
            packing.pack(tmp_path / "study.py", statistics=tmp_path / "wrong.json", **told)
    found = json.loads((folder / "statistics.json").read_text())
    for mean in ([1.0], [None, 2.0], [1.0, 2.0, 3.0]):
        changed = {**found, "columns": {"inputs": {**found["columns"]["inputs"], "mean": mean}}}
        (tmp_path / "wrong.json").write_text(json.dumps(changed))
        with pytest.raises((DataError, StateError)):
            packing.pack(tmp_path / "study.py", statistics=tmp_path / "wrong.json", **told)


def test_a_site_never_goes_by_its_own_statistics(everybody, tmp_path):
    (tmp_path / "study.py").write_text(NORMALIZED.format(example=tmp_path / "example.npz"))
    with pytest.raises(DataError, match="which are not known"):
        Trainer(Told(str(tmp_path / "study.py"), (), {}, {}, str(tmp_path / "a.npz"), "a"))


def test_a_survey_comes_to_the_figures_of_all_data_together(federation, everybody, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "Process", InProcess)
    monkeypatch.setenv("HOME", str(tmp_path))
    path, made = packing.pack_survey(
        tmp_path / "study.py", purpose="to know what there is", bins=8, out=tmp_path / "study.pack"
    )
    sites = {name: federation.site(name, path, data=str(tmp_path / f"{name}.npz")) for name in everybody}
    for site in sites.values():
        federation.run(site)
    run = federation.submit(path, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))
    told = json.loads((runs.pull(federation.folder, run.name, out=tmp_path / "pulled") / "statistics.json").read_text())
    x = np.concatenate([one.astype(np.float64) for one, _ in everybody.values()])
    y = np.concatenate([one for _, one in everybody.values()])
    found = told["columns"]["inputs"]
    assert told["samples"] == len(y) == 92
    assert told["labels"] == np.bincount(y, minlength=3).tolist()
    assert found["missing"] == [0, 0]
    assert np.allclose(found["mean"], x.mean(0), rtol=1e-12)
    assert np.allclose(found["std"], x.std(0), rtol=1e-9)
    for feature in range(2):
        inside = np.histogram(x[:, feature], np.array(found["edges"][feature]))[0]
        assert found["histogram"][feature] == inside.tolist()
        assert sum(found["histogram"][feature]) + found["below"][feature] + found["above"][feature] == len(x)
    sizes = {
        one.size
        for site in sites.values()
        for one in outbox.read(site.house.folder / "outbox.jsonl")
        if one.kind == "update"
    }
    assert sizes == {made.leaves.frame("update").size}
    lines = "\n".join(review(sites["a"].house, "study-survey"))
    assert "inputs.missing" in lines
    assert "to know what there is" in lines


def test_what_is_asked_comes_back_from_its_bytes():
    from konvoi.job.data.statistics import Column, Survey

    asked = surveying.begin(Survey((Column("inputs", 2, (0.0, 0.0)),), num_classes=3, skipped=("ids: text",)), 5)
    assert surveying.asked_of(surveying.as_bytes(asked)) == asked
    assert asked.columns[0].low == (-1.0, -1.0)
    names = [field.name for field in surveying.leaves(asked).frame("update").fields]
    assert "samples" in names
    assert not any(name.startswith("move") for name in names)

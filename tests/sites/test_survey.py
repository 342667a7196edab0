"""What sites' data are like, asked before anything is trained: numpy's figures, over data that nobody has together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from konvoi.security import outbox
from konvoi.sites import part, surveying
from konvoi.sites.trainer import Surveyor
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


class InProcess:
    """In place of the process that computes."""

    def __init__(self, told, folder):
        self.surveyor = Surveyor(told)

    def train(self, order, *, most_s, is_over):
        return self.surveyor.round(order)

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

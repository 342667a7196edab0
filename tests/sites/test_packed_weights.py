"""The weights of a model that a pack brings, whether they are trained or not; and models that no pack can bring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import konvoi as kv
from konvoi.errors import JobError
from konvoi.security import pack as packs
from konvoi.sites import part
from konvoi.sites.orders import Told
from konvoi.sites.protocol import told_of
from konvoi.sites.trainer import Trainer
from konvoi.state import safetensors
from konvoi.verbs import packing, runs

RECIPE = """
import numpy as np
from torch import nn
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0)

def batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

job = kv.Job(
    model={model}, data=kv.data.slot(read, example="{folder}/a.npz"), freeze={freeze},
    objective=kv.objectives.classification(), optimizer=kv.optimizers.sgd(lr=0.1),
    global_batch=8, validate_every=0,
)
"""
MLP = "kv.models.mlp(widths=(8,))"
PLAN = "|fedavg,rounds=1"


class InProcess:
    """The program that trains at a site, without a process of its own."""

    def __init__(self, told, folder):
        self.here = Trainer(told)

    def train(self, order, *, most_s, is_over):
        return self.here.round(order)

    def end(self):
        pass


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """`(model, freeze)` to a pack's path and what is in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    draw = np.random.default_rng(0)
    for name in "ab":
        x = draw.normal(size=(20, 4)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))

    def make(model=MLP, freeze=(), **options):
        path = tmp_path / "study.py"
        path.write_text(RECIPE.format(model=model, folder=tmp_path, freeze=freeze))
        return packing.pack(path, purpose="x", plan=PLAN, out=tmp_path / "study.pack", **options)

    return make


def test_a_model_whose_training_keeps_statistics_is_not_packed(pack):
    with pytest.raises(JobError, match="agrees on weights alone") as raised:
        pack("batch_norm")
    assert "running_mean" in raised.value.found


def test_weights_that_nobody_trains_are_in_the_pack_and_in_what_is_pulled(pack, federation, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "Process", InProcess)
    path, made = pack(freeze=("blocks.*",))
    for name in "ab":
        federation.run(federation.site(name, path, data=str(tmp_path / f"{name}.npz")))
    run = federation.submit(path)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))
    pulled = safetensors.read(runs.pull(federation.folder, run.name, out=tmp_path / "pulled") / "model.safetensors")
    model = kv.models.mlp(widths=(8,), input_shape=(4,), num_outputs=2)()
    assert pulled.keys() == model.state_dict().keys()
    frozen = safetensors.from_bytes(packs.frozen(path, made))
    assert {name.partition(".")[0] for name in frozen} == {"blocks"}
    assert all(torch.equal(pulled[name], weight) for name, weight in frozen.items())


def test_sites_train_beside_the_weights_that_the_pack_brings(pack, tmp_path):
    path, made = pack(freeze=("blocks.*",))
    other = {name: weight + 1 for name, weight in safetensors.from_bytes(packs.frozen(path, made)).items()}
    safetensors.write(tmp_path / "frozen", other)
    plan = told_of(kv.fedavg(rounds=1))
    told = Told(str(tmp_path / "study.py"), (), plan, made.spec, str(tmp_path / "a.npz"), "a")
    told = Told(**{**vars(told), "frozen": str(tmp_path / "frozen")})
    here = dict(Trainer(told).parts.named_parameters())
    assert all(torch.equal(here[name], weight) for name, weight in other.items())


def test_a_pack_of_a_model_that_is_trained_whole_is_what_it_was(pack):
    path, made = pack()
    assert made.frozen == ""
    assert b"frozen" not in made.manifest()
    assert packs.frozen(path, made) == b""
    assert packs.read(path)[0] == made

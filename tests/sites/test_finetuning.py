"""A site that trains on by itself behind the last round: for its own house, and nothing of it leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import konvoi as kv
from konvoi.security.leaving import KIND
from konvoi.sites import part
from konvoi.sites.finetuning import FIGURES, WEIGHTS
from konvoi.sites.orders import Result
from konvoi.sites.protocol import TRAINING
from konvoi.state import safetensors
from konvoi.verbs import packing
from tests.sites.test_wire_watch import RECIPE, InProcess, data, frames_of, tapped  # noqa: F401 (fixtures)

PLAN = "|fedavg,rounds=2,finetune=3,deadline_s=60"


def run_of(federation, folder, monkeypatch, process=InProcess, limits=""):
    monkeypatch.setattr(part, "Process", process)
    monkeypatch.setenv("HOME", str(folder))
    path, _ = packing.pack(folder / "study.py", purpose="x", plan=PLAN, tell=("loss", "valid"), out=folder / "x.pack")
    for name in "ab":
        federation.run(federation.site(name, path, data=str(folder / f"{name}.npz"), limits=limits))
    federation.submit(path)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    federation.wait(lambda: all(one.is_done for site, *_ in federation.sites for one in site.parts.values()), 60)
    return {site.here.site: next(iter(site.parts.values())) for site, *_ in federation.sites}


def test_what_it_learns_stays_in_its_house(federation, data, tapped, monkeypatch):  # noqa: F811
    parts = run_of(federation, data, monkeypatch)
    run = federation.hosted()
    agreed = np.fromfile(run.folder / "weights" / run.state.base, "<f4")
    for name, one in parts.items():
        found = safetensors.read(one.folder / WEIGHTS)
        own = torch.cat([tensor.reshape(-1) for tensor in found.values()]).numpy()
        assert own.shape == agreed.shape
        assert not np.allclose(own, agreed, atol=1e-4)
        assert any(f"{name}: study-1: fine-tuned for this house alone" in line for line in federation.said)
        said = [line for line in federation.said if f"{name}: study-1: fine-tuned" in line]
        figures = json.loads((one.folder / FIGURES).read_text())
        assert f"{figures['after']['valid_loss']:.4f} after" in said[0]
        kinds = [body[:KIND].rstrip(b"\0") for body in frames_of(tapped, name)]
        last = len(kinds) - kinds[::-1].index(b"update") - 1
        assert {*kinds[last + 1 :]} <= {b"ask", b"get"}  # that the run is over, and what was agreed
        assert kinds.count(b"update") == 2
    own = [
        torch.cat([t.reshape(-1) for t in safetensors.read(one.folder / WEIGHTS).values()]) for one in parts.values()
    ]
    assert not torch.equal(*own)
    figures = json.loads((parts["b"].folder / FIGURES).read_text())  # of whom all samples are of one class
    assert figures["after"]["valid_loss"] < figures["before"]["valid_loss"]


class FailsAtLast:
    """Learns well, and then does not."""

    def __init__(self, told, folder):
        self.does = InProcess(told, folder)

    def train(self, order, **given):
        return Result(TRAINING) if order.finetune else self.does.train(order, **given)

    def end(self):
        pass


def test_that_it_fails_is_told_in_the_house_alone(federation, data, tapped, monkeypatch):  # noqa: F811
    parts = run_of(federation, data, monkeypatch, FailsAtLast)
    assert any("a: study-1: not fine-tuned: training failed; why stands in" in line for line in federation.said)
    assert not (parts["a"].folder / WEIGHTS).exists()
    assert not any(body.startswith(b"error") for name in "ab" for body in frames_of(tapped, name))


class LeavesNothing(FailsAtLast):
    """Says that it has, and has not."""

    def train(self, order, **given):
        return Result() if order.finetune else self.does.train(order, **given)


def test_a_fault_at_last_is_told_in_the_house_alone(federation, data, tapped, monkeypatch):  # noqa: F811
    parts = run_of(federation, data, monkeypatch, LeavesNothing)
    assert any("a: study-1: not fine-tuned: training failed; why stands in" in line for line in federation.said)
    assert not (parts["a"].folder / WEIGHTS).exists()
    assert not any(body.startswith(b"error") for name in "ab" for body in frames_of(tapped, name))


def test_limits_hold_for_a_run_that_is_over(federation, data, monkeypatch):  # noqa: F811
    """Also where they were lowered in the meantime, or a server says at once that a run is over."""

    class Lowers(InProcess):
        def train(self, order, **given):
            if order.round == 2:
                for site, *_ in federation.sites:
                    (site.house.folder / "limits.toml").write_text("max_epochs = 2")
            return super().train(order, **given)

    parts = run_of(federation, data, monkeypatch, Lowers)
    said = "not fine-tuned: 3 epochs of fine-tuning; this site allows 2"
    assert all(any(f"{name}: study-1: {said}" in line for line in federation.said) for name in "ab")
    assert not any((one.folder / WEIGHTS).exists() for one in parts.values())


def test_a_sites_limit_of_epochs_is_also_of_these():
    from konvoi.sites.limits import Limits

    local = kv.fedavg(rounds=2, finetune=3).local
    assert Limits(max_epochs=2).forbid(local, 2, "x") == ["3 epochs of fine-tuning; this site allows 2"]
    assert Limits(max_epochs=3).forbid(local, 2, "x") == []


@pytest.mark.slow
def test_it_is_what_simulated_clients_do(tmp_path):
    """Also where the learning rate falls over the rounds, and layers are each site's own."""
    from konvoi.sites.orders import Order, Told
    from konvoi.sites.protocol import told_of
    from konvoi.sites.trainer import Trainer
    from tests.sites.test_training import CLIENTS
    from tests.sites.test_training import RECIPE as TEXT

    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "all.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    for number, rows in enumerate(CLIENTS):
        np.savez(tmp_path / f"{number}.npz", x=x[[*rows]], y=(x[[*rows], 0] > 0).astype(np.int64))
    path = tmp_path / "recipe.py"
    path.write_text(TEXT.format(folder=tmp_path).replace("schedules.constant()", "schedules.cosine()"))
    from konvoi.job.data.partition import Partition
    from konvoi.recipe import load_recipe

    plan = kv.fedavg(rounds=3, finetune=2)
    clients = Partition(3, lambda *_: [np.array(rows) for rows in CLIENTS])
    fleet = kv.fleet.simulated(clients, num_workers=1, way="one by one", holdout=0.01, keep_finetuned=True)
    monkey = load_recipe(path).job()
    run = kv.train(monkey, plan, fleet, folder=tmp_path / "run", checkpoint_every=0, sinks=[])
    agreed = torch.cat([p.detach().reshape(-1) for p in run.model().parameters()])
    (tmp_path / "weights").write_bytes(agreed.numpy().astype("<f4").tobytes())
    from konvoi.state.record import Record

    kept = Record(run.folder).task().population.indices
    for number, rows in enumerate(kept):  # without what the simulated client keeps for evaluation
        told = {"plan": told_of(plan), "spec": {"num_classes": 2, "input_shape": [4]}, "overrides": ()}
        np.savez(tmp_path / "own.npz", x=x[rows], y=(x[rows, 0] > 0).astype(np.int64))
        trainer = Trainer(Told(str(path), data=str(tmp_path / "own.npz"), site=str(number), **told))
        trainer.number = number
        out, keep = tmp_path / f"{number}.safetensors", tmp_path / "figures.json"
        order = Order(4, str(tmp_path / "weights"), "", str(out), str(keep), {}, True, True)
        assert trainer.round(order).code == 0
        theirs = dict(run.model(client=number).named_parameters())
        for name, mine in safetensors.read(out).items():
            assert torch.allclose(mine, theirs[name], atol=2e-6, rtol=1e-4), (number, name)

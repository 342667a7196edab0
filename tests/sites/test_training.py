"""What sites and their server compute is what the same plan computes with simulated clients."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import konvoi as kv
from konvoi.job.data.partition import Partition
from konvoi.job.data.statistics import survey
from konvoi.sites import surveying
from konvoi.sites.adding import Agreed, Learnt
from konvoi.sites.orders import Order, Told
from konvoi.sites.protocol import DATA, NOT_FINITE, TRAINING, leaves, told_of
from konvoi.sites.surveying import Surveyed
from konvoi.sites.trainer import Surveyor, Trainer, build, trained_of
from konvoi.verbs import packing

RECIPE = """
import numpy as np
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0)

def job():
    return kv.Job(
        model=kv.models.mlp(widths=(8,)), data=kv.data.slot(read, example="{folder}/all.npz"),
        objective=kv.objectives.classification(), optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(), global_batch=8, validate_every=0, clip_grad_norm=None,
    )
"""
CLIENTS = ((*range(20),), (*range(20, 29),), (*range(29, 60),))
PLANS = {
    "fedavg": kv.fedavg(rounds=3, epochs=2),
    "fedprox": kv.fedprox(rounds=3, proximal=0.5),
    "scaffold": kv.scaffold(rounds=3, steps=3),
    "fedadam": kv.fedadam(rounds=3, outer_lr=0.05),
    "personal": kv.fedavg(rounds=3, personal=("head.*",)),
    "momentum": kv.fedavg(rounds=3, outer_momentum=0.5, equal=True),
}


@pytest.fixture
def made(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4)).astype(np.float32)
    y = ((x[:, 0] + 0.3 * x[:, 1]) > 0).astype(np.int64)
    np.savez(tmp_path / "all.npz", x=x, y=y)
    for number, rows in enumerate(CLIENTS):
        np.savez(tmp_path / f"{number}.npz", x=x[[*rows]], y=y[[*rows]])
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def simulated(path, plan, folder):
    from konvoi.recipe import load_recipe

    job = load_recipe(path).job()
    clients = Partition(3, lambda *_: [np.array(rows) for rows in CLIENTS])
    fleet = kv.fleet.simulated(clients, num_workers=1, way="one by one")
    run = kv.train(job, plan, fleet, folder=folder, checkpoint_every=0, sinks=[])
    return {name: p.detach() for name, p in run.model().named_parameters()}


def surveyed(path, folder):
    """What a survey of these sites comes to, as a pack has it."""
    told = {"plan": {}, "spec": {"num_classes": 2, "input_shape": [4]}, "overrides": (), "kind": "survey"}
    sites = [Surveyor(Told(str(path), data=str(folder / f"{n}.npz"), site=str(n), **told)) for n in range(3)]
    asked = Surveyed(surveying.as_bytes(surveying.begin(survey(sites[0].splits), 5)))
    for number in range(1, surveying.ROUNDS + 1):
        (folder / "asked").write_bytes(asked.as_bytes()[0] if number > 1 else surveying.as_bytes(asked.asked))
        answers = []
        for one in sites:
            one.round(Order(number, str(folder / "asked"), "", str(folder / "out"), str(folder / "keep"), {}, False))
            answers.append(dict(np.load(folder / "out")))
        asked.take(answers)
    (folder / "statistics.json").write_bytes(asked.as_bytes()[1])
    return surveying.constants_of(folder, ("inputs",))


def deployed(path, plan, folder, **more):
    """The server's arithmetic and the sites' programs, without what carries them to each other."""
    told = more | {"plan": told_of(plan), "spec": {"num_classes": 2, "input_shape": [4]}, "overrides": ()}
    trainers = [Trainer(Told(str(path), data=str(folder / f"{n}.npz"), site=str(n), **told)) for n in range(3)]
    for number, one in enumerate(trainers):
        one.number = number  # as the simulation counts its clients
    names = [*trained_of(trainers[0].parts)]
    is_own = [any(name.startswith("head") for _ in plan.local.personal) for name in names]
    first = [p.detach() for p in trained_of(trainers[0].parts).values()]
    row = torch.cat([p.reshape(-1) for p, own in zip(first, is_own, strict=True) if not own]).numpy()
    if plan.local.controls:
        row = np.concatenate([row, np.zeros_like(row)])
    agreed, own = Agreed(plan, row), [""] * 3
    shapes = [p.shape for p, mine in zip(first, is_own, strict=True) if not mine]
    for number in range(1, plan.rounds + 1):
        (folder / "weights").write_bytes(agreed.as_bytes()[0])
        updates = []
        for site, trainer in enumerate(trainers):
            order = Order(
                round=number,
                weights=str(folder / "weights"),
                own=own[site],
                out=str(folder / "out"),
                keep=str(folder / f"own{site}"),
                settings={},
                evaluate=False,
            )
            result = trainer.round(order)
            assert result.code == 0
            found = np.load(folder / "out")
            control = found["control"] if "control" in found else np.zeros(0, np.float32)
            updates.append(Learnt(found["move"], control, float(result.samples)))
            own[site] = str(folder / f"own{site}")
        agreed.take(updates, 3)
    pieces = agreed.weights.split([shape.numel() for shape in shapes])
    kept = [name for name, mine in zip(names, is_own, strict=True) if not mine]
    return {name: piece.view(shape) for name, piece, shape in zip(kept, pieces, shapes, strict=True)}


QUICK = ("scaffold",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in PLANS])
def test_deployed_is_what_was_simulated(made, tmp_path, name):
    plan = PLANS[name]
    theirs = simulated(made, plan, tmp_path / "run")
    mine = deployed(made, plan, tmp_path)
    assert mine
    for key, value in mine.items():
        assert torch.allclose(value, theirs[key], atol=2e-6, rtol=1e-4), key


@pytest.mark.slow
def test_deployed_is_what_was_simulated_also_where_data_are_normalised_by_the_federations_statistics(made, tmp_path):
    slot = 'kv.data.slot(read, example="{folder}/all.npz")'
    made.write_text(RECIPE.replace(slot, f"kv.data.normalize({slot})").format(folder=tmp_path))
    found = surveyed(made, tmp_path)
    theirs = simulated(made, PLANS["fedavg"], tmp_path / "run")
    mine = deployed(made, PLANS["fedavg"], tmp_path, statistics=found)
    for key, value in mine.items():
        assert torch.allclose(value, theirs[key], atol=2e-6, rtol=1e-4), key


def test_what_goes_wrong_is_a_number_and_nothing_else(made, tmp_path, capfd):
    """The process answers a code; the message, with whatever is in it, is only for the log here."""
    import subprocess
    import sys

    plan = kv.fedavg(rounds=1)
    (tmp_path / "bad.py").write_text("raise ValueError('Mueller, Anna')\n")
    weights = tmp_path / "weights"
    weights.write_bytes(b"\0\0")
    order = Order(1, str(weights), "", str(tmp_path / "out"), str(tmp_path / "own"), {}, False)
    for recipe, expected in (("bad.py", DATA), ("recipe.py", TRAINING)):
        told = Told(str(tmp_path / recipe), (), told_of(plan), {}, str(tmp_path / "0.npz"), "a")
        lines = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in (told, order))
        done = subprocess.run(
            [sys.executable, "-m", "konvoi.sites.trainer"], input=lines, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == {
            "code": expected,
            "samples": 0,
            "loss": 0.0,
            "valid_loss": 0.0,
            "valid_samples": 0,
            "metrics": {},
        }
        assert ("Mueller, Anna" in done.stderr) == (recipe == "bad.py")


def test_what_is_not_finite_is_no_update(made, tmp_path):
    plan = kv.fedavg(rounds=1)
    trainer = Trainer(Told(str(made), (), told_of(plan), {}, str(tmp_path / "0.npz"), "a"))
    size = sum(p.numel() for p in trained_of(trainer.parts).values())
    (tmp_path / "weights").write_bytes(np.full(size, np.inf, "<f4").tobytes())
    order = Order(1, str(tmp_path / "weights"), "", str(tmp_path / "out"), str(tmp_path / "own"), {}, False)
    assert trainer.round(order).code == NOT_FINITE
    assert not (tmp_path / "out").exists()


def test_a_learning_rate_may_be_open(made, tmp_path):
    plan = kv.fedavg(rounds=1)
    trainer = Trainer(Told(str(made), (), told_of(plan), {}, str(tmp_path / "0.npz"), "a"))
    row = torch.cat([p.detach().reshape(-1) for p in trained_of(trainer.parts).values()]).numpy()
    (tmp_path / "weights").write_bytes(row.astype("<f4").tobytes())
    moves = []
    for lr in (0.1, 1e-6):
        order = Order(1, str(tmp_path / "weights"), "", str(tmp_path / "out"), str(tmp_path / "own"), {"lr": lr}, False)
        trainer.round(order)
        moves.append(abs(np.load(tmp_path / "out")["move"]).max())
    assert moves[1] < 1e-4 * moves[0]


def test_the_list_has_every_parameter_that_is_agreed_on(made, tmp_path):
    prepared, parts, _ = build(__import__("konvoi.recipe").recipe.load_recipe(made).job(), None, None)
    shapes = {name: tuple(p.shape) for name, p in trained_of(parts).items()}
    listed = leaves(shapes, kv.scaffold().local)
    names = {field.name for field in listed.frame("update").fields}
    assert {f"move {name}" for name in shapes} | {f"control {name}" for name in shapes} <= names
    assert "samples" not in names  # all count alike
    assert prepared.splits.spec.num_classes == 2


def test_a_pack_says_how_many_samples_a_site_may_claim(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def ranges(plan, **given):
        return packing.pack(made, purpose="x", plan=plan, out=tmp_path / "x.pack", **given)[1].ranges

    assert ranges("|fedavg,rounds=3") == {"samples": (1.0, 1e6)}
    assert ranges("|fedavg,rounds=3", ranges={"samples": (1.0, 50.0)}) == {"samples": (1.0, 50.0)}
    assert ranges("|scaffold,rounds=3") == {}  # all count alike
    monkeypatch.setattr(packing, "MOST_SAMPLES", 100)
    assert ranges("|fedavg,rounds=3", ranges={"lr": (0.1, 1.0)}) == {"lr": (0.1, 1.0), "samples": (1.0, 600.0)}

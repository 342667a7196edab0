"""Every way to learn from clients equals the slow twin that is written straight from its paper."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import konvoi as kv
from konvoi.observe.events import RoundDone
from tests import small
from tests.population.twin import first_weights, rounds

LR = 0.2
SOURCE = small.Samples(90)
SKEWED = kv.data.quantity_skew(clients=7, alpha=0.6, least=1)
PLANS = {
    "fedavg": kv.fedavg(rounds=4, cohort=4),
    "fedavg, several epochs": kv.fedavg(rounds=3, epochs=2.5),
    "fedavg, steps, equal": kv.fedavg(rounds=3, steps=3, equal=True),
    "fedavgm": kv.fedavg(rounds=4, outer_momentum=0.9, outer_lr=0.5),
    "fedprox": kv.fedprox(rounds=4, proximal=0.5, epochs=2),
    "scaffold": kv.scaffold(rounds=5, cohort=4),
    "fedadam": kv.fedadam(rounds=4, outer_lr=0.05),
    "fedyogi": kv.fedyogi(rounds=4, outer_lr=0.05),
    "fedadagrad": kv.fedadagrad(rounds=4, outer_lr=0.05),
    "fedbuff": kv.fedbuff(rounds=6, buffer=2, cohort=4),
    "personal": kv.fedavg(rounds=4, cohort=5, personal=("head.*",)),
}
WORLDS = {
    "all are there": {},
    "30 % are lost": {"dropout": 0.3},
    "unequal": {"spread": 1.0, "available": 0.8},
}


def train(agent, folder, plan, fleet, **options):
    job = small.job(
        data=(SOURCE, small.Samples(20, 1000)),
        steps=None,
        optimizer=kv.optimizers.sgd(lr=LR),
        schedule=kv.schedules.constant(),
        clip_grad_norm=None,
    )
    kept = {"folder": folder, "name": "run", "sinks": [], "agent": agent, "checkpoint_every": 1, "keep": 0} | options
    return job, kv.train(job, kv.Island(precision="fp64") | plan, fleet, **kept)


CASES = [(name, "all are there") for name in PLANS]
CASES += [(name, world) for name in ("fedavg", "scaffold", "fedbuff") for world in ("30 % are lost", "unequal")]


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize(("name", "world"), CASES)
def test_each_equals_its_twin(agent, tmp_path, name, world, way):
    plan = PLANS[name]
    fleet = kv.fleet.simulated(SKEWED, 1, way=way, at_once=4, seed=3, **WORLDS[world])
    job, run = train(agent, tmp_path, plan, fleet)
    indices = SKEWED.of(SOURCE)
    expected, own = rounds(first_weights(job), SOURCE, indices, plan, fleet, lr=LR, batch=job.global_batch)
    found = small.state(run, "model.")
    # What clients keep lies in float32.
    keeps = plan.local.controls or plan.local.personal
    close = {"rtol": 1e-4, "atol": 1e-6} if keeps else {"rtol": 1e-9, "atol": 1e-11}
    for weight in expected[-1]:
        if not any(weight.startswith(one.rstrip("*")) for one in plan.local.personal):
            torch.testing.assert_close(found[weight], expected[-1][weight], **close)
    assert small.differences(expected[0], expected[-1]) != []  # it has learnt
    counted = [event.counted for event in small.events(run, RoundDone)]
    assert len(counted) == plan.rounds
    if plan.local.personal:
        rows = np.memmap(run.folder / "clients" / "personal.float32", np.float32).reshape(len(indices), -1)
        for client, kept in own.items():
            whole = torch.cat([one.reshape(-1) for one in kept.values()])
            torch.testing.assert_close(torch.tensor(rows[client]).double(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "fedadam", "personal", "fedbuff"])
def test_a_run_that_is_resumed_goes_the_same_way(agent, tmp_path, name):
    """Also what clients keep goes back to the checkpoint: here two rounds, as if they had been lost."""
    fleet = kv.fleet.simulated(SKEWED, 2, way="one by one", dropout=0.2)
    _, whole = train(agent, tmp_path / "whole", PLANS[name], fleet)
    _, cut = train(agent, tmp_path / "cut", PLANS[name], fleet)
    checkpoints = cut.folder / "checkpoints"
    for step in range(3, PLANS[name].rounds + 1):
        shutil.rmtree(checkpoints / f"step-{step:06d}")
    _, again = train(agent, tmp_path / "cut", PLANS[name], fleet, resume="run")
    assert small.differences(small.state(whole), small.state(again)) == []
    for file in ("controls.float32", "personal.float32"):
        if (whole.folder / "clients" / file).exists():
            kept = [np.fromfile(run.folder / "clients" / file, np.float32) for run in (whole, again)]
            assert np.array_equal(*kept)


def test_two_workers_come_to_the_same_as_one(agent, tmp_path):
    runs = [
        train(agent, tmp_path / str(number), PLANS["scaffold"], kv.fleet.simulated(SKEWED, number))[1]
        for number in (1, 2)
    ]
    one, two = (small.state(run, "model.") for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)  # controls lie in float32


class OneIsBroken(small.Samples):
    """The samples of one client are no numbers."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample if index >= 30 else {**sample, "inputs": sample["inputs"] * np.float32("nan")}


@pytest.mark.parametrize("way", ["together", "one by one"])
def test_an_update_that_is_not_finite_does_not_count(agent, tmp_path, way):
    data = (OneIsBroken(90), small.Samples(20, 1000))
    job = small.job(data=data, steps=None, optimizer=kv.optimizers.sgd(lr=LR))
    clients = kv.data.by_key(lambda sample: bool(np.isnan(sample["inputs"][0])))
    fleet = kv.fleet.simulated(clients, 1, way=way, at_once=2)
    run = kv.train(job, kv.fedavg(rounds=3), fleet, folder=tmp_path, sinks=[], agent=agent)
    assert [(e.asked, e.counted, e.refused) for e in small.events(run, RoundDone)] == [(2, 1, 1)] * 3
    assert all(np.isfinite(run.losses))

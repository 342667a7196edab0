"""A federation that begins with weights that something else has learnt."""

from __future__ import annotations

import pytest
import torch

import konvoi as kv
from konvoi.observe.events import Evaluated
from tests import small

CLIENTS = kv.data.iid(clients=4)


def job(**fields):
    fields = {"optimizer": kv.optimizers.sgd(lr=0.1), "steps": None, "validate_every": 1} | fields
    return small.job(**fields)


def federate(agent, folder, job, rounds=2, **options):
    kept = {"folder": folder, "name": "federated", "sinks": [], "agent": agent} | options
    return kv.train(job, kv.fedavg(rounds=rounds), kv.fleet.simulated(CLIENTS, 2, holdout=0.1), **kept)


@pytest.mark.parametrize("before", ["trained here", "federated"])
def test_it_begins_where_another_run_ended(agent, tmp_path, before):
    if before == "federated":
        first = federate(agent, tmp_path / "first", job())
    else:
        first = small.train(agent, tmp_path / "first", job(steps=10))
    ended = [event for event in small.events(first, Evaluated) if event.split == "valid"][-1]
    second = federate(agent, tmp_path / "second", job(model=first.model()))
    begun = small.events(second, Evaluated)[0]
    assert (begun.step, begun.split) == (0, "valid")
    assert begun.values == pytest.approx(ended.values, rel=1e-6)
    assert second.evaluate()["loss"] < begun.values["loss"]
    again = federate(agent, tmp_path / "second", job(model=first.model()), rounds=3, resume="federated")
    assert small.events(again, Evaluated)[-1].step == 3


def test_the_module_that_is_given_stays_as_it_is(agent, tmp_path):
    module = torch.nn.Linear(6, 2)
    weight = module.weight.detach().clone()
    run = federate(agent, tmp_path, job(model=module))
    assert torch.equal(module.weight, weight)
    assert not torch.equal(run.model().weight, weight)

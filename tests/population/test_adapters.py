"""Adapters that clients train together: what is sent, and what the mean of two factors is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import konvoi as kv
from konvoi.observe.events import Evaluated, Ready, RunStarted
from konvoi.population.cohorts import order
from tests import small
from tests.population.twin import first_weights, local

pytest.importorskip("peft")

LR = 0.2
SOURCE = small.Samples(90)
CLIENTS = kv.data.quantity_skew(clients=3, alpha=1.0, least=5)
PLAN = kv.fedavg(rounds=1, epochs=4)


def train(agent, folder, lora, plan=PLAN, way="measured", **fields):
    plain = {"schedule": kv.schedules.constant(), "clip_grad_norm": None, "data": SOURCE} | fields
    job = small.job(adapt=lora, steps=None, optimizer=kv.optimizers.sgd(lr=LR), **plain)
    fleet = kv.fleet.simulated(CLIENTS, 1, way=way, at_once=2)
    return job, kv.train(job, kv.Island(precision="fp64") | plan, fleet, folder=folder, sinks=[], agent=agent)


def alone(job):
    """What each client has behind its round, and its share of the mean."""
    model = first_weights(dataclasses.replace(job, model=job.adapt.on(job.model)))
    indices, found = CLIENTS.of(SOURCE), []
    for client, rows in enumerate(indices):
        batches = order(job.seed, client, 1, rows, PLAN.local.sizes(len(rows), job.global_batch))
        found.append((len(rows) / 90, local(model, (), SOURCE, batches, lr=LR)))
    return found


def product(weights, name):
    return weights[f"{name}.lora_B.default.weight"] @ weights[f"{name}.lora_A.default.weight"]


@pytest.mark.parametrize("way", ["together", pytest.param("one by one", marks=pytest.mark.slow)])
@pytest.mark.parametrize("freeze_a", [True, False], ids=["B alone", "A and B"])
def test_the_mean_of_products_is_exact_where_b_alone_is_trained(agent, tmp_path, freeze_a, way):
    job, run = train(agent, tmp_path, kv.adapt.lora(rank=2, freeze_a=freeze_a), way=way)
    clients, agreed = alone(job), small.state(run, "model.")
    for name in ("blocks.0", "blocks.1"):
        mean = sum(share * product(weights, name) for share, weights in clients)
        error = (product(agreed, name) - mean).norm().item()
        assert mean.norm() > 0.01
        assert error < 1e-9 if freeze_a else error > 0.01 * mean.norm()
    for name, weight in agreed.items():  # and each factor is the mean of theirs
        torch.testing.assert_close(weight, sum(share * w[name] for share, w in clients), rtol=1e-9, atol=1e-11)
    told = small.events(run, RunStarted)[0].derived
    assert any(("exact: B alone" if freeze_a else "approximate") in line for line in told)


@pytest.mark.parametrize("freeze_a", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_adapters_are_all_that_is_agreed_on(agent, tmp_path, freeze_a):
    job, run = train(agent, tmp_path, kv.adapt.lora(rank=2, freeze_a=freeze_a))
    first = first_weights(dataclasses.replace(job, model=job.adapt.on(job.model))).state_dict()
    moved = {name for name, weight in small.state(run, "model.").items() if not torch.equal(weight, first[name])}
    assert {name.split(".")[-3] for name in moved} == ({"lora_B"} if freeze_a else {"lora_A", "lora_B"})
    sizes = {name: weight.numel() for name, weight in first.items() if name in moved}
    assert small.events(run, Ready)[0].num_parameters == sum(sizes.values())


def test_a_federation_tunes_what_another_run_has_learnt_and_exports_it(agent, tmp_path):
    first = small.train(agent, tmp_path / "first", small.job(steps=2))
    fields = {"model": first.model(), "data": small.DATA, "validate_every": 1}
    _, run = train(agent, tmp_path, kv.adapt.lora(rank=2, freeze_a=True), kv.fedavg(rounds=6, epochs=3), **fields)
    begun, *_, ended = small.events(run, Evaluated)
    assert begun.values["loss"] == pytest.approx(first.evaluate()["loss"], rel=1e-5)  # B begins at zero
    assert ended.values["loss"] < begun.values["loss"]
    folder = run.save_pretrained(tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").exists()

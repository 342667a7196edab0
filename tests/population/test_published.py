"""What papers found of these algorithms, found here: least squares over clients of one class each."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.job.data.tensors import Arrays
from konvoi.observe.events import Evaluated
from tests import small

CLASSES, ROUNDS = 4, 20
DRAW = np.random.default_rng(0)
CENTERS = DRAW.normal(size=(CLASSES, 6))
LABELS = np.arange(200) % CLASSES
INPUTS = CENTERS[LABELS] + DRAW.normal(size=(200, 6))
DATA = Arrays(
    {"inputs": INPUTS.astype(np.float32), "targets": np.eye(CLASSES, dtype=np.float32)[LABELS], "labels": LABELS}
)
CLIENTS = {
    "one class each": kv.data.shards(clients=CLASSES, each=1),
    "alike": kv.data.iid(clients=CLASSES),
}


def zeros():
    model = nn.Linear(6, CLASSES)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model


def least():
    """The smallest loss that there is."""
    inputs = np.concatenate([DATA.columns["inputs"], np.ones((200, 1))], 1).astype(np.float64)
    _, rest, _, _ = np.linalg.lstsq(inputs, DATA.columns["targets"].astype(np.float64), rcond=None)
    return rest.sum() / 200


@pytest.fixture(scope="module")
def federate(agent, tmp_path_factory):
    """`(clients, plan)` to the loss above the least behind each round, and the norms of the mean moves."""

    @functools.cache
    def run(clients, plan):
        job = kv.Job(
            model=zeros(),
            data=(DATA, DATA),
            objective=kv.objectives.regression(),
            optimizer=kv.optimizers.sgd(lr=0.02),
            schedule=kv.schedules.constant(),
            clip_grad_norm=None,
            global_batch=50,  # all that a client has: nothing is random
            validate_every=1,
        )
        fleet = kv.fleet.simulated(CLIENTS[clients], 2, way="one by one")
        options = {"folder": tmp_path_factory.mktemp("run"), "checkpoint_every": 0, "sinks": [], "agent": agent}
        found = kv.train(job, kv.Island(precision="fp64") | plan, fleet, **options)
        losses = [event.values["loss"] - least() for event in small.events(found, Evaluated)]
        return np.array(losses[1:]), np.array([step.grad_norm for step in found.steps])

    return run


def fedavg(steps):
    return kv.fedavg(rounds=ROUNDS, steps=steps)


def scaffold(steps):
    return kv.scaffold(rounds=ROUNDS, steps=steps)


def until(losses, good):
    """The first round behind which the loss is that good."""
    return next((number for number, loss in enumerate(losses, 1) if loss < good), np.inf)


def test_scaffold_needs_fewer_rounds_where_clients_are_unlike(federate):
    """arXiv 1910.06378, sections 5 and 7.1: FedAvg drifts to where clients' own optima pull it, and stays there."""
    average, controlled = federate("one class each", fedavg(10))[0], federate("one class each", scaffold(10))[0]
    assert until(controlled, 0.05) < until(average, 0.05) / 2 < np.inf
    assert until(controlled, 0.01) < ROUNDS / 2
    assert until(average, 0.04) == np.inf
    assert controlled[-1] < average[-1] / 100


def test_more_local_steps_harm_fedavg_and_help_scaffold(federate):
    """arXiv 1910.06378, figure 3."""
    (few, _), (many, _) = (federate("one class each", fedavg(steps)) for steps in (10, 30))
    assert many[-1] > 2 * few[-1]
    (few, _), (many, _) = (federate("one class each", scaffold(steps)) for steps in (10, 30))
    assert many[9] < few[9]


def test_where_clients_are_alike_so_are_the_two(federate):
    average, controlled = federate("alike", fedavg(10))[0], federate("alike", scaffold(10))[0]
    for good in (0.1, 0.05, 0.01):
        assert abs(until(average, good) - until(controlled, good)) <= 1 <= until(average, good) < ROUNDS / 2


def test_the_more_proximal_the_shorter_the_moves(federate):
    """arXiv 1812.06127, section 3.2: the proximal term bounds how far clients go; with less of it, it is FedAvg."""
    plans = [kv.fedprox(rounds=3, steps=30, proximal=mu) for mu in (0.0, 0.1, 1.0, 10.0)]
    first = [federate("one class each", plan)[1][0] for plan in plans]
    assert first == sorted(first, reverse=True)
    assert first[-1] < first[0] / 2
    assert first[0] == pytest.approx(federate("one class each", fedavg(30))[1][0], rel=1e-9)

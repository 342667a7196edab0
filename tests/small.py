"""A job that takes milliseconds, and runs of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.observe.events import Evaluated, Ready, Sampled
from konvoi.observe.sinks.jsonl import read_events
from konvoi.state import record, shards

LOADED_LATER = ("konvoi.state.shards", "konvoi.plan.split.tensor", "torch._dynamo")  # once here, not in each run


class Samples:
    """Points of two classes, each drawn from its own index."""

    def __init__(self, length=60, first=0):
        self.length, self.first = length, first

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        random = np.random.default_rng(int(index) + self.first)
        inputs = random.normal(size=6).astype(np.float32)
        return {"inputs": inputs, "labels": np.int64(inputs.sum() > 0)}


DATA = (Samples(), Samples(20, 1000))


# For runs of unlike arithmetic: Adam's own eps makes a whole step of a gradient that is noise alone.
STEADY = kv.optimizers.adamw(lr=0.01, eps=1e-4)


def wobbly():
    """Draws random numbers in its forward pass, and keeps running statistics."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)
    )


def job(**fields):
    """Twenty steps of 8 samples: two and two thirds epochs."""
    model = kv.models.mlp((12, 12), input_shape=(6,), num_outputs=2)
    objective = kv.objectives.classification()
    fixed = {"model": model, "data": DATA, "objective": objective, "steps": 20, "global_batch": 8}
    return kv.Job(**(fixed | {"optimizer": kv.optimizers.adamw(lr=0.01), "validate_every": 0} | fields))


def train(agent, folder, job, plan=None, **options):
    plan = plan or kv.Island(dp=2)
    fleet = kv.fleet.local(plan.num_workers, oversubscribe=True)
    options = {"folder": folder, "name": "run", "sinks": [], "agent": agent, "checkpoint_every": 3} | options
    return kv.train(job, plan, fleet, **options)


def events(run, kind):
    folder = run if isinstance(run, Path) else run.folder
    return [event for event in read_events(folder / "events.jsonl") if isinstance(event, kind)]


def saved(folder):
    """The steps of the whole checkpoints in a run's folder."""
    return [step for step, _ in record.whole_checkpoints(folder / "checkpoints")]


def state(run, prefix=""):
    """What the newest checkpoint holds, whole."""
    return shards.read_whole(record.whole_checkpoints(run.folder / "checkpoints")[-1][1], prefix)


def differences(one, other):
    """Names of the tensors that are not equal bit by bit."""
    return [name for name in one.keys() | other.keys() if not torch.equal(one.get(name), other.get(name))]


def assert_same(one, other):
    """The two runs went the same way, bit by bit, and ended at the same place with the same optimizer state."""
    assert one.losses == other.losses
    assert differences(state(one), state(other)) == []


def tells_the_same(run, alone):
    """Two runs of one job under different plans: losses, what was evaluated and sampled, and all that was kept."""
    assert [event.num_parameters for event in events(run, Ready)] == [e.num_parameters for e in events(alone, Ready)]
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(alone.losses), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(events(run, Evaluated), events(alone, Evaluated), strict=True):
        assert mine.values == pytest.approx(theirs.values, rel=1e-4)
    assert [event.text for event in events(run, Sampled)] == [event.text for event in events(alone, Sampled)]
    whole, expected = state(run), state(alone)
    assert whole.keys() == expected.keys()  # a tied weight once, averages and optimizer state of every stage
    for name in whole:
        torch.testing.assert_close(whole[name], expected[name], rtol=1e-3, atol=1e-5)
    assert run.evaluate()["loss"] == pytest.approx(events(run, Evaluated)[-1].values["loss"], rel=1e-4)

"""What training changes beside a model's weights is agreed on by nobody, so that such a model is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import JobError
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.plan.island import Island
from konvoi.population.reading import reader
from konvoi.population.running_statistics import refuse_running_statistics
from tests import small


class Scaled(nn.Module):
    """Its scale is a constant that a checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return self.scale * self.inner(x)


class Counts(Scaled):
    """It counts its own calls, and calls that a scale."""

    def forward(self, x):
        self.scale = self.scale + 1
        return self.inner(x)


def norm(**options):
    return lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12, **options), nn.Linear(12, 2))


def look(model):
    cpu = torch.device("cpu")
    island = LiveIsland(Place(0, 1), Island(), cpu, None)
    parts = island.split(model, kv.objectives.classification(), seed=0)
    refuse_running_statistics(island, parts, reader(small.Samples(60), 0, None, cpu, 0), np.arange(60))


@pytest.mark.parametrize(
    ("model", "named"), [(norm(), "1.running_mean, 1.running_var"), (Counts, "scale")], ids=["batch norm", "own"]
)
def test_what_training_changes_is_refused_by_name(model, named):
    with pytest.raises(JobError, match="agrees on weights alone") as raised:
        look(model)
    assert named in raised.value.found
    assert "track_running_stats=False" in raised.value.hint


@pytest.mark.parametrize("model", [norm(track_running_stats=False), Scaled, lambda: nn.Linear(6, 2)])
def test_what_stays_as_it_is_may_be_there(model):
    before = torch.random.get_rng_state()
    look(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("way", ["measured", "one by one"])
def test_clients_that_are_simulated_train_no_such_model(agent, tmp_path, way):
    fleet = kv.fleet.simulated(kv.data.iid(clients=3), 1, way=way)
    with pytest.raises(JobError, match="agrees on weights alone"):
        kv.train(
            small.job(model=norm(), steps=None), kv.fedavg(rounds=1), fleet, folder=tmp_path, sinks=[], agent=agent
        )

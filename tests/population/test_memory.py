"""How many clients are trained at once is what there is room for, by what they are seen to take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import konvoi as kv
from konvoi.job.data.tensors import Arrays
from konvoi.observe.events import Ready
from konvoi.population.memory import Peak
from konvoi.population.reading import Held, reader
from konvoi.population.work import Work
from tests import small
from tests.population.test_together import MODELS, measured


def test_the_peak_is_of_what_is_there_at_once():
    given = torch.zeros(1000)
    with Peak() as peak:
        given.view(10, 100)
        one = given + 1
        two = one * 2
        del one
        three = two + given
        three.add_(two)
        three.view(-1)
    assert peak.bytes == 2 * 4000


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("mlp", kv.optimizers.adamw(lr=0.01)), ("cnn", kv.optimizers.sgd(lr=0.1))],
    ids=["mlp", "cnn"],
)
def test_a_stack_takes_no_more_than_there_is(model, optimizer):
    recipe, source = MODELS[model]
    job = small.job(model=recipe, optimizer=optimizer, steps=None)
    batch = [np.arange(8)] * 2
    trainer, _, parameters = measured(job, source, (2,))

    def taken(count):
        with Peak() as peak:
            weights = [p.expand(count, *p.shape).clone() for p in parameters]
            trainer.together.train(Work(1, weights, [batch] * (count - 1) + [batch[:1]]))
        return peak.bytes

    room = 5 * taken(2) // 2
    trainer, _, _ = measured(job, source, (8,), memory=room)
    (size,) = trainer.costs.stacks
    assert 2 <= size <= 5
    assert room / 2 < taken(size) < 1.05 * room
    trainer, told, _ = measured(job, source, (8,), memory=room // 5)
    assert not trainer.costs.stacks
    assert "in a stack" in told


def train(agent, folder, memory, data):
    job = small.job(data=data, steps=None)
    fleet = kv.fleet.simulated(kv.data.iid(clients=6), 1, way="together", at_once=4, memory=memory)
    return kv.train(job, kv.fedavg(rounds=1), fleet, folder=folder, sinks=[], agent=agent)


def test_a_run_with_little_memory_has_smaller_stacks(agent, tmp_path):
    notes = [
        small.events(train(agent, tmp_path / str(memory), memory, small.Samples(60)), Ready)[0].note
        for memory in (1 << 30, 30_000, 1)
    ]
    assert notes[0].startswith("4 clients are trained together")
    assert notes[1].startswith(("2 clients are trained together", "3 clients are trained together"))
    assert notes[2].startswith("clients are trained one by one: each takes ")


def test_samples_in_memory_say_what_they_take():
    rows = Arrays({"inputs": np.zeros((50, 6), np.float32), "labels": np.zeros(50, np.int64)})
    cpu = torch.device("cpu")
    held = reader(rows, 0, None, cpu, 50 * 32)
    assert isinstance(held, Held)
    assert held.size == 50 * 32
    assert not isinstance(reader(rows, 0, None, cpu, 50 * 32 - 1), Held)

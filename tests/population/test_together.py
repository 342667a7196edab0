"""Many clients at once: the same as one by one, for every kind of model, optimizer and unequal client."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import PlanError
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.plan.island import Island
from konvoi.population.choosing import Costs, measure
from konvoi.population.one_by_one import OneByOne
from konvoi.population.reading import reader
from konvoi.population.together import Together
from konvoi.population.work import Work
from tests import small

ROOM = 1 << 30


def test_bias_and_relu_are_computed_behind_the_pooling_alone():
    recipe, source = MODELS["pooling"]
    _, together, parameters = both(small.job(model=recipe, steps=None), source, (4,))
    together.train(works(parameters, [[8]] * 4)[0])
    (graph,) = together.gradients._traced.values()
    rectified = [node for node in graph.graph.nodes if node.target is torch.ops.aten.relu.default]
    assert [node.meta["tensor_meta"].shape for node in rectified] == [(4, 8, 3, 3, 3)]


class Unlabelled(small.Samples):
    """Its last ten count nothing."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "labels": np.int64(-100 if index in NOTHING else sample["labels"])}


class Images:
    deterministic = True

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return {name: column[0] for name, column in self.__getitems__(np.array([index])).items()}

    def __getitems__(self, indices):
        draws = [np.random.default_rng(int(one)).normal(size=(1, 8, 8)).astype(np.float32) for one in indices]
        return {"inputs": np.stack(draws), "labels": np.array([int(d.sum() > 0) for d in draws])}


MODELS = {
    "mlp": (kv.models.mlp((12,), input_shape=(6,), num_outputs=2), small.Samples(60)),
    "cnn": (kv.models.cnn(depth=2, channels=4, input_shape=(1, 8, 8), num_outputs=2), Images()),
    "frozen": (kv.models.mlp((12, 7), input_shape=(6,), num_outputs=2), small.Samples(60)),
    "pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)),
        Images(),
    ),
}
FROZEN = {"frozen": ("blocks.0.*",)}
OPTIMIZERS = {
    "sgd": kv.optimizers.sgd(lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": kv.optimizers.adamw(lr=0.01, eps=1e-4, groups=(kv.optimizers.Group("*.bias", lr=0.02),)),
}


def both(job, source, sizes):
    """The two ways, over one module."""
    cpu = torch.device("cpu")
    island = LiveIsland(Place(0, 1), Island(), cpu, None)
    parts = island.split(job.model, job.objective, seed=0, freeze=job.freeze)
    read = reader(source, 0, None, cpu, 1 << 20)
    return (
        OneByOne(island, parts, job, 10, read),
        Together(parts.modules[0], job, 10, read, cpu, sizes),
        [p.detach().clone() for p in parts.modules[0].parameters() if p.requires_grad],
    )


def works(parameters, lengths, *, proximal=0.0, corrected=False, seed=0):
    """Twice the same: clients whose steps have these numbers of samples."""
    torch.manual_seed(seed)
    count = len(lengths)
    weights = [p.expand(count, *p.shape) + 0.01 * torch.randn(count, *p.shape) for p in parameters]
    corrections = [0.01 * torch.randn_like(one) for one in weights] if corrected else None
    draw = np.random.default_rng(seed)
    batches = [[draw.integers(0, 60, size) for size in sizes] for sizes in lengths]
    return [Work(3, [one.clone() for one in weights], batches, proximal, corrections) for _ in range(2)]


NOTHING = range(60, 70)  # samples of `Unlabelled` that count nothing
EQUAL = [[8] * 3] * 5
UNEVEN = [[8] * 6, [8, 8, 3], [1], [8, 5], [2, 2, 2, 2], [8] * 6, [7], [4] * 2]


@pytest.mark.parametrize("lengths", [EQUAL, UNEVEN], ids=["equal", "uneven"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_together_is_one_by_one(model, optimizer, lengths):
    recipe, source = MODELS[model]
    job = small.job(
        model=recipe, optimizer=OPTIMIZERS[optimizer], clip_grad_norm=0.5, steps=None, freeze=FROZEN.get(model, ())
    )
    one_by_one, together, parameters = both(job, source, (8, 4, 2))
    for options in ({}, {"proximal": 0.3, "corrected": True}):
        slow, fast = works(parameters, lengths, **options)
        expected, found = one_by_one.train(slow), together.train(fast)
        for mine, theirs, at_first in zip(fast.weights, slow.weights, parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
            assert not torch.equal(theirs[0], at_first)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.weights, expected.weights)
        torch.testing.assert_close(found.rates, expected.rates)


def test_next_tokens_are_left_out_as_they_should():
    """A shorter batch is filled up with sentences that do not count."""
    objective = kv.objectives.next_token()
    model = nn.Embedding(5, 5)
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 0, 1]])}
    off = torch.tensor([False, True])
    whole = objective(model, {"input_ids": batch["input_ids"][:1]})
    less = objective(model, objective.without(batch, off))
    torch.testing.assert_close(whole, less)
    masked = batch | {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert objective(lambda ids, attention_mask: model(ids), objective.without(masked, off))[1] == 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": small.wobbly}, "statistics beside its parameters"),
        ({"model": lambda: nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.Linear(12, 2))}, "random"),
        ({"optimizer": kv.optimizers.muon(matrices="*weight")}, "looks at a matrix as a whole"),
    ],
    ids=["batch norm", "dropout", "muon"],
)
def test_what_cannot_be_batched_is_trained_one_by_one_and_says_why(fields, why):
    job = small.job(steps=None, **fields)
    cpu = torch.device("cpu")
    island = LiveIsland(Place(0, 1), Island(), cpu, None)
    parts = island.split(job.model, job.objective, seed=0)
    read = reader(small.Samples(60), 0, None, cpu, 1 << 20)
    one_by_one = OneByOne(island, parts, job, 10, read)
    parameters = [p.detach() for p in parts.modules[0].parameters()]
    trainer, told = measure(
        one_by_one,
        lambda: Together(parts.modules[0], job, 10, read, cpu),
        parameters,
        np.arange(8),
        (2,),
        ROOM,
        kv.Local(),
    )
    assert trainer.together is None
    assert [(start, stop) for start, stop, _ in trainer.costs.divide([1, 1])] == [(0, 1), (1, 2)]
    assert told.startswith("clients are trained one by one: ")
    assert why in told


def test_a_way_that_must_be_and_cannot_is_refused(agent, tmp_path):
    job = small.job(optimizer=kv.optimizers.muon(matrices="*weight"), steps=None)
    fleet = kv.fleet.simulated(kv.data.iid(clients=3), 1, way="together")
    with pytest.raises(PlanError, match="looks at a matrix as a whole"):
        kv.train(job, kv.fedavg(rounds=2), fleet, folder=tmp_path, sinks=[], agent=agent)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_one_client_in_a_stack_is_bit_by_bit_what_it_is_alone(model, optimizer):
    recipe, source = MODELS[model]
    job = small.job(
        model=recipe, optimizer=OPTIMIZERS[optimizer], clip_grad_norm=None, steps=None, freeze=FROZEN.get(model, ())
    )
    one_by_one, together, parameters = both(job, source, ())
    for options in ({}, {"proximal": 0.3, "corrected": True}):
        slow, fast = works(parameters, [[8, 8, 8]], **options)
        expected, found = one_by_one.train(slow), together.train(fast)
        assert all(map(torch.equal, fast.weights, slow.weights))
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)


def meeting():
    """What a sample comes to depends on the others of its batch."""
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12, track_running_stats=False), nn.ReLU(), nn.Linear(12, 2))


def measured(job, source, sizes, memory=ROOM, local=None):
    """Both ways as a run finds them, with what it says of them."""
    one_by_one, together, parameters = both(job, source, ())
    return *measure(
        one_by_one, lambda: together, parameters, np.arange(8), sizes, memory, local or kv.Local()
    ), parameters


def test_clients_whose_samples_meet_in_the_model_are_not_filled_up():
    trainer, told, parameters = measured(
        small.job(model=meeting, optimizer=OPTIMIZERS["sgd"], steps=None), small.Samples(60), (2,)
    )
    assert told.endswith("where their batches are of one size")
    lengths = [(8, 8, 3), (8, 5), (8, 8, 3), (8, 4), (8, 5), (8, 8)]
    pieces = [piece for _, piece in dataclasses.replace(trainer, costs=Costs(1e9, trainer.costs.stacks)).pieces(
        range(len(lengths)), lengths, 1
    )]  # fmt: skip
    assert sorted(pieces) == [[0, 2], [1, 4], [3], [5]]
    for piece in pieces:
        slow, fast = works(parameters, [lengths[client] for client in piece])
        trainer.one_by_one.train(slow)
        trainer.way(len(piece)).train(fast)
        for mine, theirs in zip(fast.weights, slow.weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_clients_whose_samples_do_not_meet_are(model):
    recipe, source = MODELS[model]
    job = small.job(model=recipe, steps=None, freeze=FROZEN.get(model, ()))
    trainer, told, _ = measured(job, source, (2,))
    assert trainer.can_fill_up
    assert told.startswith("2 clients are trained together")


@pytest.mark.parametrize("can_fill_up", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_that_counts_nothing_is_no_step(optimizer, can_fill_up):
    """Neither decay nor momentum, proximal term nor correction moves a client by it, and no bias is corrected by it."""
    recipe, _ = MODELS["mlp"]
    job = small.job(model=recipe, optimizer=OPTIMIZERS[optimizer], steps=None)
    one_by_one, together, parameters = both(job, Unlabelled(70), (4, 2))
    together.can_fill_up = can_fill_up
    lengths = [[8, 8, 8, 3]] * 6
    nothing = {(0, 1), (1, 0), (1, 1), (2, 3), *((3, step) for step in range(4)), (4, 0), (4, 3)}
    for options in ({}, {"proximal": 0.3, "corrected": True}):
        slow, fast = works(parameters, lengths, **options)
        for client, step in nothing:
            slow.batches[client][step] = fast.batches[client][step] = np.array(NOTHING)[: lengths[client][step]]
        before = [one[3].clone() for one in fast.weights]
        expected, found = one_by_one.train(slow), together.train(fast)
        for mine, theirs in zip(fast.weights, slow.weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(mine[3], at_first) for mine, at_first in zip(fast.weights, before, strict=True))
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.weights, expected.weights)

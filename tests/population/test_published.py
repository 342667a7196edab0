"""What papers found of these algorithms, found here: least squares over clients of one class each."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.job.data.partition import keep_back
from konvoi.job.data.tensors import Arrays
from konvoi.observe.events import Evaluated
from konvoi.plan.island import Island
from konvoi.population.choosing import Costs, Trainer
from konvoi.population.judging import judge, mean
from konvoi.population.one_by_one import OneByOne
from konvoi.population.reading import reader
from konvoi.population.rounds import Rounds
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


def test_momentum_of_the_outer_step_is_there_sooner_where_clients_are_unlike(federate):
    """arXiv 1909.06335, section 4: FedAvgM against FedAvg, of clients with one class each."""
    (average, _), (momentum, _) = (
        federate("one class each", kv.fedavg(rounds=ROUNDS, steps=5, outer_momentum=beta)) for beta in (0.0, 0.5)
    )
    assert until(momentum, 0.03) < until(average, 0.03) / 1.5 < np.inf
    assert momentum[-1] < average[-1]


class Here:
    """A federation in this process, one client after the other, without a run's folder; in float64."""

    def __init__(self, job, source, plan, fleet, folder, held_out=0.0):
        place, self.job = Place(0, 1), job
        self.island = LiveIsland(place, Island(precision="fp64"), torch.device("cpu"), None)
        self.parts = self.island.split(job.model, job.objective, seed=job.seed)
        self.read = reader(source, job.seed, None, self.island.device, 1 << 20)
        mine, self.held = keep_back(fleet.division.of(source), held_out)
        self.rounds = Rounds(job, plan, fleet, mine, dict(self.parts.named_parameters()), place, folder)
        one_by_one = OneByOne(self.island, self.parts, job, plan.rounds, self.read)
        self.trainer = Trainer(one_by_one, None, Costs(1.0))
        self.plan = plan

    def next(self):
        """The simulated seconds that a round has taken, or its end where nobody waits."""
        seconds = self.rounds.next(self.trainer).seconds
        self.rounds.load()
        return seconds

    def train(self):
        for _ in range(self.plan.rounds):
            self.next()
        return self

    def figures(self, client, rows):
        """Of what a client has, over these samples."""
        self.rounds.load(client)
        return judge(self.island, self.parts, self.job.objective, self.read, rows, 1000)

    def figure(self, name):
        """The mean over all that clients keep for evaluation."""
        return mean([self.figures(client, rows) for client, rows in enumerate(self.held) if len(rows)])[name]


def plain(model, objective, **fields):
    return kv.Job(
        model=model, data=DATA, objective=objective, schedule=kv.schedules.constant(), clip_grad_norm=None, **fields
    )


WORDS = (0.5, 0.3, 0.1, 0.03, 0.01, 0.005)  # how often each is in a text
TEXTS = (np.random.default_rng(0).random((1200, 6)) < np.array(WORDS)).astype(np.float32)
MEANINGS = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)


def no_meanings():
    model = nn.Linear(6, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return model


def test_adaptive_outer_steps_learn_what_is_rare(tmp_path):
    """arXiv 2003.00295, section 5: where gradients are sparse, FedAdam and FedYogi beat FedAvg at its best rate."""
    source = Arrays({"inputs": TEXTS, "targets": (TEXTS @ MEANINGS.float().numpy())[:, None]})
    fields = {"optimizer": kv.optimizers.sgd(lr=0.1), "global_batch": 300}
    job = plain(no_meanings, kv.objectives.regression(), **fields)
    fleet = kv.fleet.simulated(kv.data.iid(clients=4))

    def error(plan):
        (weight,) = Here(job, source, plan, fleet, tmp_path).train().parts.modules[0].parameters()
        return (weight[0] - MEANINGS).square().mean().item()

    rates = (4.0, 8.0, 12.0, 16.0, 18.0)
    errors = [error(kv.fedavg(rounds=40, steps=1, outer_lr=rate)) for rate in rates]
    assert errors.index(min(errors)) < len(rates) - 1  # its best rate lies among these
    for adaptive in (kv.fedadam, kv.fedyogi):
        assert error(adaptive(rounds=40, steps=1, outer_lr=0.15)) < min(errors) / 4


@pytest.mark.parametrize(("spread", "times"), [(1.5, 2.0), (0.0, 0.4)], ids=["some are slow", "all are alike"])
def test_who_waits_for_nobody_is_there_sooner_where_some_are_slow(tmp_path, spread, times):
    """arXiv 2106.06639, section 5: by the simulated clock, and where all are alike it is not."""
    job = plain(zeros, kv.objectives.regression(), optimizer=kv.optimizers.sgd(lr=0.02), global_batch=16)
    fleet = kv.fleet.simulated(kv.data.iid(clients=12), spread=spread)

    def clock(plan):
        here, now = Here(job, DATA, plan, fleet, tmp_path), 0.0
        for _ in range(plan.rounds):
            seconds = here.next()
            now = seconds if plan.at_once else now + seconds
            if mean([here.figures(None, np.arange(200))])["loss"] - least() < 0.02:
                return now
        return np.inf

    waiting = clock(kv.fedavg(rounds=12, steps=10, quorum=1.0))
    buffered = clock(kv.fedbuff(rounds=60, steps=10, buffer=3, cohort=12))
    assert waiting < np.inf
    assert (waiting / buffered > times) if spread else (times < waiting / buffered < 1.5)


def unlike(kind):
    """Four clients, to whom labels mean something else ("permuted"), or the same."""
    client = np.arange(200) // CLASSES % CLASSES
    labels = (LABELS + client) % CLASSES if kind == "permuted" else LABELS
    source = Arrays({"inputs": INPUTS.astype(np.float32), "labels": labels, "client": client})
    fields = {"optimizer": kv.optimizers.sgd(lr=0.2), "global_batch": 16}
    model = kv.models.mlp((16,), input_shape=(6,), num_outputs=CLASSES)
    return plain(model, kv.objectives.classification(), **fields), source


def test_training_on_by_itself_helps_each_where_clients_are_unlike(tmp_path):
    """arXiv 1909.12488, section 3: what is agreed is a good place to begin from."""
    job, source = unlike("permuted")
    plan = kv.fedavg(rounds=10, epochs=2, finetune=5)
    here = Here(job, source, plan, kv.fleet.simulated(kv.data.by_key("client")), tmp_path, held_out=0.3).train()
    before = here.figure("accuracy")
    tuned = {
        client: judge(here.island, here.parts, job.objective, here.read, here.held[client], 1000)
        for client in here.rounds.tuned(range(CLASSES), here.trainer)
    }
    assert len(tuned) == CLASSES
    assert mean(tuned.values())["accuracy"] > before + 0.3


@pytest.mark.parametrize("kind", ["permuted", "alike"])
def test_personal_heads_help_where_labels_mean_something_else_to_each(tmp_path, kind):
    """arXiv 1912.00818, section 4; and where all are alike, a head that all have learnt is better."""
    job, source = unlike(kind)
    fleet = kv.fleet.simulated(kv.data.by_key("client"))

    def figures(personal):
        plan = kv.fedavg(rounds=10, epochs=2, personal=personal)
        here = Here(job, source, plan, fleet, tmp_path, held_out=0.3).train()
        with contextlib.closing(here.rounds):
            return here.figure("loss"), here.figure("accuracy")

    (own_loss, own_accuracy), (loss, accuracy) = figures(("head.*",)), figures(())
    assert own_accuracy > accuracy + 0.3 if kind == "permuted" else own_loss > loss

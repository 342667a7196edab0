"""Clients that evaluate on samples of their own: the same as each by itself, and what is decided by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import FleetError, JobError, PlanError, StateError
from konvoi.job.data.partition import keep_back
from konvoi.observe.events import ClientsEvaluated, Evaluated
from konvoi.population.cohorts import order
from konvoi.population.judging import mean, spread
from tests import small
from tests.population.twin import first_weights, judged, local, rounds

LR = 0.2
SOURCE = small.Samples(90)
SKEWED = kv.data.quantity_skew(clients=7, alpha=0.6, least=1)
NUMBERS = ("min", "p10", "median", "p90", "max", "std")


def train(agent, folder, plan, num_workers=1, *, data=SOURCE, fleet=None, **fields):
    fields = {"schedule": kv.schedules.constant(), "clip_grad_norm": None, "validate_every": 1} | fields
    job = small.job(data=data, steps=None, optimizer=kv.optimizers.sgd(lr=LR), **fields)
    fleet = fleet or kv.fleet.simulated(SKEWED, num_workers, holdout=0.3)
    run = kv.train(job, kv.Island(precision="fp64") | plan, fleet, folder=folder, name="run", sinks=[], agent=agent)
    return job, run, fleet


def of_split(run, kind, split):
    return [event for event in small.events(run, kind) if event.split == split]


@pytest.mark.parametrize("personal", [(), ("head.*",)], ids=["agreed", "personal"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_clients_find_equals_the_twin(agent, tmp_path, personal, num_workers):
    plan = kv.fedavg(rounds=3, cohort=4, personal=personal)
    job, run, fleet = train(agent, tmp_path, plan, num_workers)
    mine, held = keep_back(SKEWED.of(SOURCE), 0.3)
    model = first_weights(job)
    history, own = rounds(model, SOURCE, mine, plan, fleet, lr=LR, batch=job.global_batch)
    found = []
    for client, samples in enumerate(held):
        model.load_state_dict(history[-1] | own.get(client, {}))
        found += [judged(model, SOURCE, samples)] if len(samples) else []
    sizes = [len(samples) for samples in held if len(samples)]
    last, across = of_split(run, Evaluated, "clients")[-1], of_split(run, ClientsEvaluated, "clients")[-1]
    close = {"rel": 1e-5} if personal else {"rel": 1e-9}  # what clients keep lies in float32
    assert last.step == across.step == 3
    assert across.clients == len(sizes)
    for number, name in enumerate(("loss", "accuracy")):
        values = np.array([row[number] for row in found])
        assert last.values[name] == pytest.approx(np.average(values, weights=sizes), **close)
        expected = [*np.quantile(values, [0, 0.1, 0.5, 0.9, 1]), values.std()]
        assert across.spread[name] == pytest.approx(dict(zip(NUMBERS, expected, strict=True)), **close)
    assert [event.step for event in of_split(run, Evaluated, "clients")] == [0, 1, 2, 3]


def test_nobody_trains_on_what_is_kept_for_evaluation():
    parts = SKEWED.of(SOURCE)
    mine, held = keep_back(parts, 0.3)
    for part, train_rows, held_rows in zip(parts, mine, held, strict=True):
        assert sorted([*train_rows, *held_rows]) == sorted(part)
        assert len(train_rows) >= 1
        assert len(held_rows) >= (len(part) > 1)


class Jumpy(nn.Module):
    """Its steps are too long."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 2)

    def forward(self, x):
        return 40 * self.inner(x)


def test_the_best_round_is_chosen_by_what_clients_find_where_the_job_holds_nothing_out(agent, tmp_path):
    _, run, _ = train(agent, tmp_path, kv.fedavg(rounds=40), patience=2, model=Jumpy)
    told = of_split(run, Evaluated, "clients")
    losses = [event.values["loss"] for event in told]
    assert [event.best for event in told] == [loss < min(losses[:n], default=np.inf) for n, loss in enumerate(losses)]
    assert run.reason == "early stopping"
    assert len(told) < 40
    best = int(np.argmin(losses))
    assert best + 2 == told[-1].step
    if best:
        assert best in small.saved(run.folder)


def test_the_jobs_own_held_out_part_goes_first(agent, tmp_path):
    _, run, _ = train(agent, tmp_path, kv.fedavg(rounds=3), data=(SOURCE, small.Samples(20, 1000)))
    assert any(event.best for event in of_split(run, Evaluated, "valid"))
    assert not any(event.best for event in of_split(run, Evaluated, "clients"))
    page = run.report().read_text()
    assert "how unlike they are" in page


def test_a_run_can_be_evaluated_afterwards(agent, tmp_path):
    _, run, _ = train(agent, tmp_path, kv.fedavg(rounds=2))
    assert run.evaluate() == pytest.approx(of_split(run, Evaluated, "clients")[-1].values, rel=1e-6)


def test_evaluating_without_anything_held_out_is_an_error(agent, tmp_path):
    with pytest.raises(JobError, match="no held-out data"):
        train(agent, tmp_path, kv.fedavg(rounds=2), fleet=kv.fleet.simulated(SKEWED))
    with pytest.raises(FleetError, match="holdout is a share"):
        kv.fleet.simulated(SKEWED, holdout=1.0)


def test_who_has_nothing_that_counts_is_in_no_figure():
    rows = [{"loss": 2.0, "weight": 2.0}, {"loss": 0.0, "weight": 0.0}]
    assert mean(rows) == {"loss": 1.0}
    assert spread(rows)["loss"] == {**dict.fromkeys(NUMBERS, 1.0), "std": 0.0}
    assert np.isnan(mean([])["loss"])
    assert spread([]) == {}


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize("fields", [{}, {"personal": ("head.*",)}], ids=["agreed", "personal"])
def test_clients_that_train_on_by_themselves_equal_the_twin(agent, tmp_path, way, fields):
    plan = kv.fedavg(rounds=2, cohort=4, finetune=1.5, **fields)
    fleet = kv.fleet.simulated(SKEWED, 2, way=way, at_once=4, holdout=0.3)
    job, run, _ = train(agent, tmp_path, plan, fleet=fleet)
    mine, held = keep_back(SKEWED.of(SOURCE), 0.3)
    model = first_weights(job)
    history, own = rounds(model, SOURCE, mine, plan, fleet, lr=LR, batch=job.global_batch)
    found = []
    for client, samples in enumerate(held):
        if not len(samples):
            continue
        model.load_state_dict(history[-1] | own.get(client, {}))
        sizes = kv.Local(epochs=1.5).sizes(len(mine[client]), job.global_batch)
        now = local(model, (), SOURCE, order(job.seed, client, 3, mine[client], sizes), lr=LR)
        model.load_state_dict(now)
        found.append(judged(model, SOURCE, samples)[0])
    before, after = [of_split(run, ClientsEvaluated, split) for split in ("clients", "clients, fine-tuned")]
    assert (before[-1].step, [event.step for event in after]) == (2, [2])
    close = {"rel": 1e-4} if fields else {"rel": 1e-9}
    expected = [*np.quantile(found, [0, 0.1, 0.5, 0.9, 1]), np.std(found)]
    assert after[0].spread["loss"] == pytest.approx(dict(zip(NUMBERS, expected, strict=True)), **close)
    assert after[0].spread != before[-1].spread
    sizes = [len(samples) for samples in held if len(samples)]
    told = of_split(run, Evaluated, "clients, fine-tuned")[0]
    assert told.values["loss"] == pytest.approx(np.average(found, weights=sizes), **close)
    if not fields:  # what is agreed, and saved, is what it was before
        saved = small.state(run, "model.")
        for name, weight in history[-1].items():
            torch.testing.assert_close(saved[name], weight, rtol=1e-9, atol=1e-11)


def test_what_fine_tuning_brings_is_told_where_nothing_else_is_evaluated(agent, tmp_path):
    _, run, _ = train(agent, tmp_path, kv.fedprox(rounds=2, finetune=1), validate_every=0)
    assert [event.split for event in small.events(run, Evaluated)] == ["clients", "clients, fine-tuned"]
    with pytest.raises(PlanError, match="no samples to tell what fine-tuning does"):
        train(agent, tmp_path, kv.fedavg(rounds=2, finetune=1), fleet=kv.fleet.simulated(SKEWED), validate_every=0)
    with pytest.raises(PlanError, match="finetune is a number of epochs"):
        kv.fedavg(finetune=-1)


def test_what_clients_have_fine_tuned_is_kept_where_that_is_asked_for(agent, tmp_path):
    """Of all of them, also of who has nothing to evaluate it on; the run's own weights stay what was agreed."""
    plan = kv.fedavg(rounds=2, finetune=1)
    fleet = kv.fleet.simulated(SKEWED, 2, holdout=0.3, keep_finetuned=True)
    job, run, _ = train(agent, tmp_path, plan, fleet=fleet)
    mine, held = keep_back(SKEWED.of(SOURCE), 0.3)
    assert not all(map(len, held))
    model = first_weights(job)
    history, _ = rounds(model, SOURCE, mine, plan, fleet, lr=LR, batch=job.global_batch)
    for client, rows in enumerate(mine):
        model.load_state_dict(history[-1])
        sizes = kv.Local(epochs=1).sizes(len(rows), job.global_batch)
        expected = local(model, (), SOURCE, order(job.seed, client, 3, rows, sizes), lr=LR)
        for name, weight in run.model(client=client).named_parameters():
            torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, weight in run.model().named_parameters():
        torch.testing.assert_close(weight.double(), history[-1][name], rtol=1e-5, atol=1e-6)
    with pytest.raises(StateError, match="keeps nothing that this client has fine-tuned"):
        run.model(client=7)


def test_where_nothing_is_fine_tuned_nothing_can_be_kept(agent, tmp_path):
    fleet = kv.fleet.simulated(SKEWED, holdout=0.3, keep_finetuned=True)
    with pytest.raises(PlanError, match="nothing is fine-tuned"):
        train(agent, tmp_path, kv.fedavg(rounds=2), fleet=fleet)

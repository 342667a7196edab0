"""Gossip between real models, in one process: what the paper says, and what conserves the mean."""

import numpy as np
import pytest
import torch

from konvoi.errors import PlanError
from konvoi.job import optimizers
from konvoi.job.job import prepare
from konvoi.plan import compress
from konvoi.plan.convoy import Convoy
from konvoi.plan.island import Island
from konvoi.plan.presets import gossip, parse
from konvoi.proof.cases import case
from konvoi.simulate_gossip import GossipSimulation

EXACT = Island(precision="fp64")


def record(simulation):
    """Steps with what they read, and who has averaged with whom, in order."""
    log = []

    def tell(number, one):
        read, halve = one.batches.read, one.pairs._halve

        def reading(ranges):
            log.append(("step", number, read(ranges)))
            return log[-1][2]

        def halving(action):
            log.append(("average", number, int(action.peer[-1])))
            return halve(action)

        one.batches.read, one.pairs._halve = reading, halving

    for number, one in enumerate(simulation.islands):
        tell(number, one)
    return log


def paper(simulation, log, lr):
    """arXiv 1710.06952, algorithm 1, without overlap: gradient steps, and now and then x_i, x_j <- their mean."""
    one = simulation.islands[0]
    fresh = GossipSimulation(simulation.prepared, gossip(), 1, island=EXACT).islands[0]
    module, parameters = fresh.parts.modules[0], list(fresh.learner.parameters.values())
    first = [p.detach().clone() for p in parameters]
    x = dict.fromkeys(range(len(simulation.islands)), first)
    objective = simulation.prepared.job.objective
    for what, who, told in log:
        if what == "step":
            with torch.no_grad():
                for parameter, value in zip(parameters, x[who], strict=True):
                    parameter.copy_(value)
            (item,) = told
            loss, weight = objective(module, one.island.to_device(item).batch)
            gradients = torch.autograd.grad(loss / weight, parameters)
            x[who] = [value - lr * g for value, g in zip(x[who], gradients, strict=True)]
        else:
            x[who] = x[told] = [(a + b) / 2 for a, b in zip(x[who], x[told], strict=True)]
    return x


@pytest.mark.parametrize("every", [1, 3])
def test_gossip_is_its_papers_algorithm(every):
    job = case("gpt ragged", steps=12, optimizer=optimizers.sgd(lr=0.2), clip_grad_norm=None).job
    simulation = GossipSimulation(prepare(job), gossip(every=every), 4, island=EXACT)
    log = record(simulation)
    for _ in simulation.run():
        pass
    simulation.settle()
    assert sum(what == "average" for what, _, _ in log) >= 4
    expected = paper(simulation, log, 0.2)
    for number, one in enumerate(simulation.islands):
        for mine, other in zip(one.parameters.values(), expected[number], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("codec", [compress.none(), compress.low_bit(1), compress.top_k(0.05)], ids=str)
@pytest.mark.parametrize("ahead", [0, 2])
def test_the_mean_stays_whatever_an_encoding_leaves_out(codec, ahead):
    job = case("gpt ragged", steps=12, optimizer=optimizers.sgd(lr=0.0)).job
    simulation = GossipSimulation(prepare(job), gossip(every=2, compression=codec, ahead=ahead), 3, island=EXACT)
    for number, one in enumerate(simulation.islands):
        for parameter in one.parameters.values():
            parameter.add_(0.1 * number)
    before = simulation.consensus()
    for _ in simulation.run():
        pass
    simulation.settle()
    assert sum(one.pairs.num_swapped for one in simulation.islands) >= 2
    for name, value in simulation.consensus().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


def test_weights_that_are_no_numbers_are_refused_and_counted():
    job = case("mlp", steps=12).job
    simulation = GossipSimulation(prepare(job), gossip(every=1), 2, island=EXACT)
    first, second = simulation.islands
    for step in simulation.run():
        if step == 1:
            next(iter(first.parameters.values())).fill_(float("nan"))
    assert first.pairs.num_refused + second.pairs.num_refused > 0
    assert all(np.isfinite(p.numpy()).all() for p in second.parameters.values())


@pytest.mark.parametrize("text", ["|gossip,outer_momentum=0.9", "|gossip,fragments=2", "|convoy,partners=trios"])
def test_what_pairs_cannot_do_is_refused(text):
    with pytest.raises(PlanError):
        parse(text)


def test_only_gossip_is_simulated_as_such():
    with pytest.raises(PlanError, match="no gossip"):
        GossipSimulation(prepare(case("mlp").job), Convoy(), 2)

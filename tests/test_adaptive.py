"""Convoys that choose how often they agree, and in how many bits, from what they measure."""

import pytest
import torch

import konvoi as kv
from konvoi.errors import MessageRefused, PlanError
from konvoi.job.job import prepare
from konvoi.plan import compress
from konvoi.plan.compress.ladder import RUNGS
from konvoi.plan.sync.messages import Decision, Update
from konvoi.plan.sync.pace import following
from konvoi.plan.sync.state import Rules
from konvoi.proof.cases import case
from konvoi.simulate import Simulation
from konvoi.tally import Stopwatch


def simulation(plan, *, delay_s, step_s, steps=96):
    """Islands whose steps take so long, and whose messages are under way for so long."""
    made = Simulation(prepare(case("mlp", steps=steps).job), plan, 2)
    made.hub.delay_s = delay_s
    for one in made.islands:
        one.convoy.watch = Stopwatch(lambda one=one: made.hub.now + step_s * len(one.losses))
    return made


def decisions(made):
    last = made.islands[0].convoy.state.last
    found = [last]
    for _ in made.run():
        if (last := made.islands[0].convoy.state.last).round > found[-1].round:
            found.append(last)
    return found


def test_a_slow_link_makes_rounds_as_long_as_it_wants():
    made = simulation(kv.adaptive(every=2, max_comm_fraction=0.1), delay_s=0.1, step_s=1.0)
    found = decisions(made)
    trips = made.islands[0].convoy.watch.cost / 0.1
    assert 5 <= trips <= 15
    assert [one.every for one in found[1:4]] == [0, 4, 8]  # nothing is known at the first; then at most twice as long
    assert 0.5 * trips <= found[-1].every <= 2 * trips
    assert {one.rung for one in found} == {0}
    for one in made.islands[1:]:
        assert one.convoy.state.last.id == made.islands[0].convoy.state.last.id


def test_a_quick_link_agrees_at_every_step_and_then_in_more_bits_until_nothing_is_left_out():
    made = simulation(kv.adaptive(every=16), delay_s=0.0001, step_s=1000.0)
    found = decisions(made)
    chosen = [(one.every, one.rung) for one in found[1:]]
    assert chosen[:9] == [(0, 0), (8, 0), (4, 0), (2, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert {*chosen[9:]} == {(1, 4)}
    assert [one.steps for one in found[1:7]] == [16, 32, 40, 44, 46, 47]


def test_what_is_measured_is_the_least_that_a_member_has_seen():
    rules = Rules(every=8, max_comm_fraction=0.1, rungs=(1.0, 2.0))
    last = Decision.first(("a", "b"), ("a", "b"), 8)
    updates = [Update(name, 0, 8, 8.0, (), cost=cost) for name, cost in (("a", 5.0), ("b", 1.0))]
    assert following(rules, last, updates) == (10, 0)
    assert following(rules, last, []) == (0, 0)
    assert following(Rules(every=8), last, updates) == (0, 0)


def test_bits_are_taken_away_before_steps_are_added():
    rules = Rules(every=8, max_comm_fraction=0.1, rungs=(1.0, 2.0, 4.0))
    last = Decision(5, "", (), (), (), ("a",), ("a",), (), 0, every=1, rung=1)
    assert following(rules, last, [Update("a", 0, 8, 8.0, (), cost=0.5)]) == (1, 0)
    assert following(rules, last, [Update("a", 0, 8, 8.0, (), cost=0.03)]) == (1, 2)
    assert following(rules, last, [Update("a", 0, 8, 8.0, (), cost=0.06)]) == (1, 1)  # twice as dear would be too much


@pytest.mark.parametrize("rung", range(len(RUNGS)))
def test_a_ladder_reads_any_of_its_rungs(rung):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    told = compress.ladder().at(rung).encode(values)
    assert torch.equal(compress.ladder().decode(told, values), RUNGS[rung].decode(RUNGS[rung].encode(values), values))
    assert len(told) == compress.ladder().at(rung).num_bytes(1000)
    for damaged in (b"", bytes([len(RUNGS)]) + told[1:], told[:-1]):
        with pytest.raises(MessageRefused):
            compress.ladder().decode(damaged, values)


def test_what_a_fraction_is_and_a_rung():
    with pytest.raises(PlanError, match="max_comm_fraction"):
        kv.adaptive(max_comm_fraction=1.5)
    with pytest.raises(PlanError, match="rungs"):
        compress.ladder().at(9)

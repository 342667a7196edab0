"""The round under faults: what must always hold, over seeds, and that it would be seen if it did not."""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from tests.plan.sync import planted, simulation

FAULTS = (
    *("loss", "delay", "duplication", "reordering", "partition", "one-way", "crash", "clock", "roster change"),
    "restart with the last write lost",
    "hint",
)
CHUNK = 50


def run(first):
    """A chunk of seeds; what was seen in them, and the seeds whose scenario had a kind of fault."""
    seen, seeds = Counter(), Counter()
    for seed in range(first, first + CHUNK):
        try:
            one = simulation.World(simulation.scenario(seed)).run()
        except simulation.Violation as error:
            raise simulation.Violation(f"seed {seed}: {error}") from None
        seen += one
        seeds += Counter(one.keys())
    return seen, seeds


def on_all_cores(run, num_seeds):
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(run, range(0, num_seeds, CHUNK))


def run_all(num_seeds):
    seen, seeds = Counter(), Counter()
    for one, other in on_all_cores(run, num_seeds):
        seen += one
        seeds += other
    print(f"{num_seeds} seeds: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(seen.items())))  # noqa: T201
    return seen, seeds


def check_coverage(seen, seeds, num_seeds):
    assert {kind: seen[kind] for kind in FAULTS if seen[kind] < num_seeds} == {}
    assert seeds["partition during a vote"] >= 0.3 * num_seeds
    assert seeds["crash between vote and application"] >= 0.1 * num_seeds


@pytest.mark.timeout(240)
def test_no_seed_of_two_thousand_breaks_a_promise():
    check_coverage(*run_all(2000), 2000)


@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug):
    with bug():
        assert first_failure() is not None


def first_failure():
    for seed in range(500):
        try:
            simulation.World(simulation.scenario(seed)).run()
        except simulation.Violation:
            return seed
    return None


def test_a_seed_that_fails_shrinks_to_a_trace_that_can_be_read():
    with planted.promise_without_the_vote():
        given = simulation.scenario(first_failure())
        smallest, trace = simulation.shrink(given)
    assert len(smallest.faults) < len(given.faults)
    assert "VIOLATION" in trace[-1]
    assert sum("--" in line for line in trace) < 15


@pytest.mark.parametrize("bound", [0, 2])
def test_who_is_slow_falls_behind_the_others_no_further_than_the_bound(bound):
    given = simulation.Scenario(4, "all", ("a", "b", "c", "d"), 0.0, 0.0, 0.05, ())
    rules = replace(simulation.RULES, **simulation.ASYNC, max_staleness=bound, patience_s=60.0)
    world = simulation.World(given, rules=rules)
    world.hosts["c"].speed = 3.0  # a tenth of the others'
    world.run()
    stalest = max(one.staleness for decision in world.decisions.values() for one in decision.updates)
    assert stalest == bound if bound else stalest > 4
    assert sum(one.member == "c" for decision in world.decisions.values() for one in decision.updates) >= 2


@pytest.mark.parametrize("by_time", [False, True])
def test_where_rounds_go_by_time_a_slow_islands_work_counts_in_each(by_time):
    given = simulation.Scenario(4, "all", ("a", "b", "c", "d"), 0.0, 0.0, 0.05, ())
    rules = replace(simulation.RULES, deadline_s=2.0, by_time=by_time)
    world = simulation.World(given, rules=rules, ends=False)
    world.hosts["c"].speed = 1.5  # a third of the others'
    world.run()
    rounds = [{one.member for one in decision.updates} for number, decision in world.decisions.items() if number]
    share = sum("c" in members for members in rounds) / len(rounds)
    assert share > 0.9 if by_time else share < 0.6
    if by_time:
        assert all({"a", "b", "d"} <= members for members in rounds)


def test_nobody_waits_for_the_end_of_a_patience_that_nobody_needs():
    """Where wires say who is out of reach, and who was killed comes back without the model, all go on when all is quiet
    again, however patient they are."""
    assert sum(on_all_cores(run_patiently, 400)) > 300


def run_patiently(first):
    """A chunk of seeds; how many were run."""
    count = 0
    for seed in range(first, first + CHUNK):
        given = simulation.scenario(seed)
        if given.family != "async":  # whose newcomers take steps here before they are members
            world = simulation.World(given, rules=replace(simulation.RULES, patience_s=600.0))
            world.keeps = 0.0
            if seed % 4 != 1:  # who has it already
                world.push(1.0, simulation.World.hint)
            world.run()
            count += 1
    return count


@pytest.mark.parametrize("tenth", range(20))
def test_who_is_back_before_it_was_missed_holds_nobody_up(tenth):
    crash = simulation.Fault("crash", 5.0 + tenth / 10, ("c",), 0.3)
    given = simulation.Scenario(4, "all", ("a", "b", "c", "d"), 0.0, 0.0, 0.05, (crash,))
    world = simulation.World(given, rules=replace(simulation.RULES, patience_s=600.0), ends=False)
    world.run()
    assert len(world.decisions) > 12


def test_decisions_tell_how_often_something_was_added_up():
    for seed in range(20):
        world = simulation.World(simulation.scenario(seed))
        world.run()
        for number in sorted(world.decisions)[1:]:
            before, one = world.decisions[number - 1], world.decisions[number]
            assert one.agreements == before.agreements + bool(one.updates)
            assert one.steps == before.steps + (before.every or world.rules.every) * bool(one.updates)


def test_the_same_scenario_is_the_same_run():
    one, other = (simulation.World(simulation.scenario(7), traced=True) for _ in range(2))
    one.run(), other.run()
    assert one.trace == other.trace

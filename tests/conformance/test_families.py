"""Models of transformers, split as they are: not one of them knows of it, and none declares anything for us."""

from dataclasses import replace

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.job import optimizers
from konvoi.plan.island import parse
from konvoi.proof import PRELOAD, differences, trace
from tests.conformance import planted
from tests.conformance.families import FAMILY_ROWS, FLOOR, PLANS, TOLERANCE, case

QUICK = (("llama", PLANS[1]), ("gpt2", PLANS[0]), ("t5", PLANS[1]))


@pytest.fixture(scope="module")
def pool():
    with AgentHandle((*PRELOAD, "transformers", "torch.distributed.pipelining")) as agent, Pool(agent, 4) as pool:
        yield pool


@pytest.fixture(scope="module")
def reference(pool):
    found = {}

    def of(name):
        if name not in found:
            (found[name],) = pool.run(trace, (case(name), parse("dp=1")), 1, name=name)
        return found[name]

    return of


ROWS = [
    pytest.param(name, plan, marks=() if (name, plan) in QUICK else pytest.mark.slow, id=f"{name} {plan}")
    for name, plan in FAMILY_ROWS
]


@pytest.mark.parametrize(("name", "text"), ROWS)
def test_a_family_under_a_plan_computes_what_one_process_computes(pool, reference, name, text):
    plan, expected = parse(text), reference(name)
    for found in pool.run(trace, (case(name), plan), plan.num_workers, name=f"{name} {text}", timeout_s=100):
        assert differences(found, expected, TOLERANCE, floor=FLOOR) == []


@pytest.mark.parametrize(
    ("bug", "name", "text"),
    [
        (planted.only_the_first_tensor_travels, "t5", PLANS[1]),
        pytest.param(planted.experts_summands_not_added, "mixtral", PLANS[0], marks=pytest.mark.slow),
        pytest.param(planted.clip_per_shard, "bert", PLANS[0], marks=pytest.mark.slow),
        pytest.param(planted.wrong_micro_batch, "vit", PLANS[1], marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_planted_bug_shows_in_a_family(pool, reference, bug, name, text):
    plan = parse(text)
    found = pool.run(bug, (case(name), plan), plan.num_workers, name=f"{bug.__name__} {name}")
    assert any(differences(one, reference(name), TOLERANCE, floor=FLOOR) for one in found)


NAMES = [
    pytest.param(name, marks=() if name in dict(QUICK) else pytest.mark.slow)
    for name in dict.fromkeys(name for name, _ in FAMILY_ROWS)
]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_learns_far_more_than_what_counts_as_equal(pool, reference, name):
    still = case(name)
    still = replace(still, job=replace(still.job, optimizer=optimizers.sgd(lr=0.0)))
    (before,) = pool.run(trace, (still, parse("dp=1")), 1, name=f"{name}, not trained")
    assert sum(reference(name).held_out) < sum(before.held_out) * (1 - 5 * TOLERANCE)

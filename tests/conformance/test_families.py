"""Models of transformers, split as they are: not one of them knows of it, and none declares anything for us."""

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.plan.island import parse
from konvoi.proof import PRELOAD, differences, trace
from tests.conformance.families import FAMILIES, FLOOR, TOLERANCE, case

PLANS = ("tp=2", "pp=2,accumulate=2")
HYBRIDS = ("tp=2,pp=2,accumulate=2", "fsdp=2,tp=2", "tp=2,sequence_parallel", "pp=2,accumulate=4,schedule=interleaved")
QUICK = ("llama", "gpt2", "mixtral", "bert", "t5", "vit")
OF_HYBRIDS = ("llama", "t5")


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


def _row(name, plan, *, slow):
    return pytest.param(name, plan, marks=pytest.mark.slow if slow else (), id=f"{name} {plan}")


ROWS = [_row(name, plan, slow=name not in QUICK) for name in FAMILIES for plan in PLANS]
ROWS += [_row(name, plan, slow=True) for name in OF_HYBRIDS for plan in HYBRIDS]


@pytest.mark.parametrize(("name", "text"), ROWS)
def test_a_family_under_a_plan_computes_what_one_process_computes(pool, reference, name, text):
    plan, expected = parse(text), reference(name)
    for found in pool.run(trace, (case(name), plan), plan.num_workers, name=f"{name} {text}", timeout_s=100):
        assert differences(found, expected, TOLERANCE, floor=FLOOR) == []


@pytest.mark.parametrize("name", [_row(name, "", slow=name not in QUICK).values[0] for name in QUICK])
def test_a_family_learns_so_that_errors_show(reference, name):
    assert reference(name).losses[-1] < reference(name).losses[0] - 0.05

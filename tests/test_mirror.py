"""An island's weights come whole to its first worker, and others go back, whatever its plan has made of them."""

import numpy as np
import pytest

from konvoi.plan.island import Island
from konvoi.proof.cases import case
from tests import mirror_rows

PLANS = [
    {"dp": 2},
    {"fsdp": 3},
    {"dp": 2, "fsdp": 2},
    {"fsdp": 2, "zero": 1},
    {"fsdp": 2, "offload": True},
    {"tp": 2},
    {"fsdp": 2, "tp": 2},
    {"pp": 2},
    {"pp": 2, "schedule": "zbv"},
    {"fsdp": 2, "pp": 2},
    {"tp": 2, "pp": 2, "accumulate": 2},
]


ROWS = [
    pytest.param(name, plan, marks=[pytest.mark.slow] * ("tp" in plan and len(plan) > 1))
    for name, plans in (("gpt deep tied", PLANS), ("gpt deep", [PLANS[number] for number in (1, 6, 8)]))
    for plan in plans
]


@pytest.fixture(scope="module")
def alone(pool):
    known = {}

    def run(name):
        if name not in known:
            (known[name],) = pool.run(mirror_rows.there_and_back, (case(name), Island(precision="fp64")), 1, name=name)
        return known[name]

    return run


@pytest.mark.parametrize(("name", "plan"), ROWS, ids=str)
def test_every_plan_has_what_one_worker_has(pool, alone, name, plan):
    brought, own, loss = alone(name)
    island = Island(precision="fp64", **plan)
    found = pool.run(mirror_rows.there_and_back, (case(name), island), island.num_workers, name=f"{name} {plan}")
    first = found[0][0]
    assert [key for key, _ in first] == [key for key, _ in brought]  # in the same order
    for (key, mine), (_, expected) in zip(first, brought, strict=True):
        np.testing.assert_array_equal(mine, expected, err_msg=key)
    for _, theirs, their_loss in found:
        assert theirs.keys() == own.keys()
        for key in own:
            np.testing.assert_array_equal(theirs[key], own[key], err_msg=key)
        assert their_loss == pytest.approx(loss, rel=1e-9)


def test_frozen_parameters_are_nobodys_to_agree_on(pool):
    some = case("gpt deep", freeze=("embed*", "blocks.0.*"))
    found = pool.run(mirror_rows.there_and_back, (some, Island(fsdp=2, precision="fp64")), 2, name="frozen")
    names = {key for key, _ in found[0][0]}
    assert names
    assert not [name for name in names if name.startswith(("embed", "blocks.0."))]

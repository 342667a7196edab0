import pytest

from konvoi.errors import PlanError
from konvoi.plan.convoy import Convoy, diloco, streaming_diloco


def test_what_cannot_be_is_refused():
    for wrong in (
        {"every": 0},
        {"every": True},
        {"updates": "weights"},
        {"every": 10, "fragments": 3},
        {"updates": "gradients", "outer_lr": 0.5},
        {"updates": "gradients", "fragments": 2},
        {"feedback": 1.5},
        {"outer_lr": 0},
    ):
        with pytest.raises(PlanError):
            Convoy(**wrong)


def test_plans_are_told_apart_by_their_hash():
    assert diloco(every=50).hash == diloco(every=50).hash != diloco(every=51).hash
    assert streaming_diloco(every=100, fragments=4).steps_per_round == 25

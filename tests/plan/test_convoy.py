import pytest

from konvoi.errors import PlanError
from konvoi.plan import compress
from konvoi.plan.convoy import Convoy
from konvoi.plan.federated import fedavg
from konvoi.plan.island import Island
from konvoi.plan.presets import diloco, local_sgd, parse, streaming_diloco


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
        {"pace": "tokens"},
        {"pace": "time", "servers": ("server",)},
        {"servers": ("a", "a")},
        {"servers": ("island-0",)},
        {"servers": ("server",), "witness": "witness"},
        {"servers": ("../up",)},
        {"deciders": ("a", "a")},
        {"deciders": ("a",), "servers": ("server",)},
        {"deciders": ("a",), "pace": "time"},
        {"deciders": ("a",), "partners": "pairs"},
    ):
        with pytest.raises(PlanError):
            Convoy(**wrong)


def test_deciders_are_islands():
    assert Convoy(deciders=("b",)).voters(("a", "b")) == ("b",)
    with pytest.raises(PlanError, match="deciders are islands"):
        Convoy(deciders=("c",)).voters(("a", "b"))


def test_plans_are_told_apart_by_their_hash():
    assert diloco(every=50).hash == diloco(every=50).hash != diloco(every=51).hash
    assert streaming_diloco(every=100, fragments=4).steps_per_round == 25


def test_a_plan_is_read_from_text():
    assert parse("dp=2,precision=bf16") == Island(dp=2, precision="bf16")
    assert parse("|local_sgd,every=5,pace=time") == Island() | local_sgd(every=5, pace="time")
    assert parse("|local_sgd,every=5") == Island() | local_sgd(every=5)
    for text, equal in (("equal", True), ("equal=true", True), ("equal=False", False)):
        assert parse(f"|fedavg,{text}") == Island() | fedavg(equal=equal)
    assert parse("fsdp=2 | diloco, outer_lr=0.9, compression=top_k:0.05, servers=a+b") == Island(fsdp=2) | diloco(
        outer_lr=0.9, compression=compress.top_k(0.05), servers=("a", "b")
    )


@pytest.mark.parametrize(
    "text",
    [
        "|dilco",
        "|diloco,evry=5",
        "|diloco,every=five",
        "|diloco,every=2.5",
        "|diloco,compression=int9",
        "|fedavg,equal=no",
        "|diloco,compression=low_bit:3",
        "dq=2|diloco",
        "|",
    ],
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        parse(text)

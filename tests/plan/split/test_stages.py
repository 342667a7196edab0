"""How a model is cut into stages, and what stands where a module is elsewhere. The table proves the whole of it."""

import itertools

import pytest
import torch
from torch import nn

from konvoi.errors import PlanError
from konvoi.job import models
from konvoi.plan.split.elsewhere import Elsewhere, Leave
from konvoi.plan.split.stages import Stage, cut, cut_up, stages_of
from konvoi.values import MicroBatch

GPT = models.gpt(depth=4, width=16, num_heads=2, vocab_size=11, seq_len=8)


def dearest(costs, ranges):
    return max(sum(costs[n] for n in one) for one in ranges)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_the_cut_is_the_best_there_is(num_stages):
    torch.manual_seed(num_stages)
    for _ in range(20):
        costs = torch.randint(0, 9, (7,)).tolist()
        found = cut(costs, num_stages)
        assert [n for one in found for n in one] == list(range(7))
        assert all(len(one) > 0 for one in found)
        # The slow twin: every way to cut.
        ways = itertools.combinations(range(1, 7), num_stages - 1)
        bounds = [[0, *way, 7] for way in ways]
        best = min(dearest(costs, [range(a, b) for a, b in itertools.pairwise(one)]) for one in bounds)
        assert dearest(costs, found) == best


def test_more_stages_than_blocks_are_refused():
    with pytest.raises(PlanError, match="more stages than blocks") as caught:
        cut([1.0, 1.0], 3)
    assert caught.value.found == "3 stages for 2 blocks"


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved", "zbv"])
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_every_stage_stands_on_one_worker(pp, schedule):
    held = [index for worker in range(pp) for index in stages_of(worker, pp, schedule)]
    assert sorted(held) == list(range(len(held)))


def names(schedule="1f1b", pp=2, model=GPT):
    with torch.device("meta"):
        module = model()
    found = []
    for worker in range(pp):
        stages, _ = cut_up(module, worker, pp, schedule)
        found += [name for stage in stages for name, _ in stage.module.named_parameters()]
    return found, [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
def test_the_stages_hold_every_parameter_once_under_its_own_name(schedule):
    found, whole = names(schedule)
    assert sorted(found) == sorted(whole)


def test_a_weight_that_stages_share_has_one_owner_and_a_copy():
    with torch.device("meta"):
        module = models.gpt(depth=4, width=16, num_heads=2, vocab_size=11, seq_len=8, tie_embeddings=True)()
    stages, (tied,) = cut_up(module, 1, 2, "1f1b")
    assert (tied.owner, tied.stage, tied.copies) == ("embed.weight", 0, {1: "head.weight"})
    assert "head.weight" in dict(stages[0].module.named_parameters())


class TwoLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.decoder = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "found"), [(TwoLists, "2 such lists: decoder, encoder"), (nn.Flatten, "0 such lists")]
)
def test_a_model_that_cannot_be_cut_says_what_was_found(model, found):
    with pytest.raises(PlanError, match="repeated blocks follow each other") as caught:
        cut_up(model(), 0, 2, "1f1b")
    assert caught.value.found == found


class Learned(nn.Module):
    """With a parameter of the root's own before the blocks, and a list whose items are asked for their kind."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(3, 4))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        for number, block in enumerate(self.blocks):
            block.kind = f"kind {number}"
        self.kinds = []

    def forward(self, x):
        x = x + self.position
        for block in self.blocks:
            self.kinds.append(block.kind)
            x = block(x)
        return x


def run(stage: Stage, batch, state):
    stage.set(lambda module, batch: module(batch), [MicroBatch(batch)])
    return stage(*state, number=torch.zeros(1, dtype=torch.int64))


def test_stages_one_after_the_other_are_the_model():
    torch.manual_seed(0)
    model, x = Learned(), torch.randn(2, 3, 4)
    state = ()
    for worker in range(3):
        ((stage,), _) = cut_up(model, worker, 3, "1f1b")
        stage.connect()
        state = run(stage, x, state)
        assert stage.module.kinds == [f"kind {n}" for n in range(len(stage.module.kinds))]
    assert torch.equal(state, model(x))
    assert len(model.position.shape) == 2
    assert isinstance(model.position, nn.Parameter), "the model itself was changed"


def test_what_is_elsewhere_answers_in_shape_and_says_nothing():
    with torch.device("meta"):
        twin = nn.Embedding(5, 4)
    module = Elsewhere(twin)
    out = module(torch.zeros(2, 3, dtype=torch.int64))
    assert out.shape == (2, 3, 4)
    assert out.isnan().all()
    assert list(module.parameters()) == []
    assert module.num_embeddings == 5
    assert list(module.state_dict()) == []


def test_the_stage_is_left_with_what_the_next_one_needs():
    x = torch.ones(2)
    with pytest.raises(Leave) as left:
        Elsewhere(nn.Linear(2, 2), flowing=())(None, mask=None, hidden_states=x)
    assert left.value.state == (x,)

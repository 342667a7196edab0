import pytest
import torch
from torch import nn

from konvoi.job import models
from konvoi.plan.split import blocks
from tests.plan.split import split_rows


def names(module):
    return [name for name, _ in blocks.find_blocks(module)]


def test_the_layers_of_a_gpt_are_its_blocks():
    assert names(models.gpt(depth=3, width=16, vocab_size=7)()) == ["blocks.0", "blocks.1", "blocks.2"]


def test_the_layers_of_torchs_encoder_are_its_blocks():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    assert names(encoder) == ["layers.0", "layers.1"]


def test_an_outer_list_wins_over_what_is_inside():
    inner = lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))  # noqa: E731
    assert names(nn.ModuleList([inner(), inner()])) == ["0", "1"]


def test_what_has_no_parameters_is_no_block():
    assert names(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(2, 2))) == []


def test_recomputing_changes_no_name_and_no_gradient():
    torch.manual_seed(0)
    module, inputs = nn.Sequential(*(split_rows.Block() for _ in range(3))), torch.randn(2, 8)
    names_before, before = list(module.state_dict()), split_rows._gradients(module, inputs)
    blocks.recompute(module)
    assert list(module.state_dict()) == names_before
    assert all(torch.equal(a, b) for a, b in zip(split_rows._gradients(module, inputs), before, strict=True))


def test_recomputing_runs_each_blocks_inside_twice():
    module, calls = nn.Sequential(*(split_rows.Block() for _ in range(3))), []
    for number, block in enumerate(module):
        block.linear.register_forward_hook(lambda *_, number=number: calls.append(number))
    blocks.recompute(module)
    module(torch.randn(2, 8)).sum().backward()
    assert calls == [0, 1, 2, 2, 1, 0]


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("kind", ["own", "torch's"])
def test_compiling_takes_one_graph_for_all_equal_blocks(pool, kind, is_recomputed):
    """Also for blocks of torch's own classes and recomputed ones, which `Module.compile` leaves out in silence."""
    assert pool.run(split_rows.num_graphs, (kind, is_recomputed), 1) in ([1], [2])  # the first input needs no gradient

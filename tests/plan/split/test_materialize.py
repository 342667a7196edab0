import numpy as np
import pytest
import torch
from torch import nn

from konvoi.errors import JobError, PlanError
from konvoi.job import models
from konvoi.plan.island import Island
from konvoi.plan.split import materialize
from konvoi.plan.split.blocks import find_blocks
from konvoi.plan.split.fully_shard import check_ties
from konvoi.plan.split.parts import find_ties
from konvoi.proof.cases import instance
from tests.plan.split import split_rows

CPU = torch.device("cpu")
GPT = models.gpt(depth=3, width=16, num_heads=2, vocab_size=17, seq_len=4)
PLANS = [
    Island(dp=2),
    Island(fsdp=2),
    Island(fsdp=3),
    Island(dp=2, fsdp=2),
    Island(fsdp=2, checkpoint_activations=True),
]


def made(model, seed=0, dtype=torch.float32):
    module = materialize.build(model, seed, CPU, dtype)
    materialize.materialize(module, seed, CPU, [("", module)], lambda unit: None)
    return module


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.describe()))
@pytest.mark.parametrize("name", ["gpt", "gpt tied", "cnn", "mlp", "callable", "instance"])
def test_the_first_weights_are_the_same_under_every_plan(pool, name, plan):
    (expected,) = pool.run(split_rows.first_weights, (name, Island()), 1)
    for found in pool.run(split_rows.first_weights, (name, plan), plan.num_workers):
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def test_another_seed_makes_other_weights_and_the_same_seed_the_same():
    one, again, other = (made(GPT, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].std() > 0)


def test_blocks_of_one_shape_begin_with_different_weights():
    module = made(GPT)
    assert not torch.equal(module.blocks[0].mlp.up.weight, module.blocks[1].mlp.up.weight)


def test_only_one_unit_is_whole_at_a_time():
    """What is sharded is put back on meta here, so that whatever is real is whole."""
    module = materialize.build(GPT, 0, CPU, torch.float32)
    sizes, most = {name: _size(unit) for name, unit in [*find_blocks(module), ("", module)]}, []

    def shard(unit):
        most.append(sum(p.numel() for p in module.parameters() if not p.is_meta))
        unit.to("meta")

    materialize.materialize(module, 0, CPU, [*find_blocks(module), ("", module)], shard)
    blocks = [size for name, size in sizes.items() if name]
    assert most == [*blocks, sizes[""] - sum(blocks)]


def test_a_tie_survives_materialising():
    module = made(models.gpt(depth=2, width=16, num_heads=2, vocab_size=17, seq_len=4, tie_embeddings=True))
    assert module.head.weight is module.embed.weight
    assert not module.head.weight.is_meta


def test_a_module_keeps_its_own_weights():
    module = instance()
    assert torch.equal(made(module)[1].weight, instance()[1].weight)


def test_a_callable_is_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two = made(lambda: nn.Linear(3, 3), seed=1), made(lambda: nn.Linear(3, 3), seed=1)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_parameters_have_the_dtype_that_was_asked_for():
    for model in (GPT, instance, instance()):
        assert {p.dtype for p in made(model, dtype=torch.float64).parameters()} == {torch.float64}


def test_a_callable_that_makes_no_module_is_refused():
    with pytest.raises(JobError, match="does not return a module") as caught:
        materialize.build(lambda: [1], 0, CPU, torch.float32)
    assert caught.value.found == "list"


def test_a_tie_across_blocks_is_refused_under_fsdp():
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    with pytest.raises(PlanError, match="tied parameter") as caught:
        check_ties(find_ties(module), ["0", "1"])
    assert "0.weight = 1.weight" in str(caught.value)


def test_a_tie_inside_one_block_is_fine():
    module = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2)])
    module[0][1].weight = module[0][0].weight
    check_ties(find_ties(module), ["0", "1"])


def _size(module):
    return sum(p.numel() for p in module.parameters())

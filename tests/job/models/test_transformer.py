"""The module: causal, the same everywhere, and filled module by module."""

import math
import zlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from konvoi.job.models import gpt
from konvoi.job.models.transformer import causal_mask, rotary_tables
from konvoi.values import InitializesByName

SMALL = {"width": 32, "num_heads": 4, "vocab_size": 257, "seq_len": 16}


def build(seed=0, dtype=torch.float32, **sizes):
    torch.manual_seed(seed)
    return gpt(2, **{**SMALL, **sizes})().to(dtype)


def tokens(batch=2, seq=12, seed=1):
    return torch.randint(0, 257, (batch, seq), generator=torch.Generator().manual_seed(seed))


def materialise(model, seed):
    """As a worker does: each module on its own, from a generator of its own; ties are kept."""
    twins = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            empty = twins.setdefault(id(parameter), nn.Parameter(torch.full_like(parameter, math.nan, device="cpu")))
            setattr(module, leaf, empty)
        model.init_module(name, module, torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))
    return model


def test_logits_have_a_place_for_each_token_of_the_vocabulary():
    assert build()(tokens()).shape == (2, 12, 257)


def test_the_blocks_are_a_module_list_of_the_depth():
    model = build()
    assert isinstance(model.blocks, nn.ModuleList)
    assert len(model.blocks) == 2


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_a_later_token_changes_no_earlier_logits(num_kv_heads):
    model, ids = build(num_kv_heads=num_kv_heads, dtype=torch.float64), tokens()
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 257
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-6


def test_grouped_queries_are_repeated_keys_and_values():
    grouped, full = build(num_kv_heads=2, dtype=torch.float64), build(dtype=torch.float64)
    state = dict(grouped.state_dict())
    for name in state:
        if ".attention.k." in name or ".attention.v." in name:
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(tokens()), full(tokens()))


def test_attention_sees_distances_and_not_positions():
    model, ids = build(dtype=torch.float64), tokens()
    moved = model(ids, position_ids=torch.arange(12) + 1000)
    torch.testing.assert_close(model(ids), moved, rtol=1e-9, atol=1e-9)
    spread = model(ids, position_ids=2 * torch.arange(12))
    assert (model(ids) - spread).abs().max() > 1e-6


def test_position_ids_may_differ_between_the_rows_of_a_batch():
    model, ids = build(dtype=torch.float64), tokens()
    rows = torch.stack([torch.arange(12), torch.arange(12) * 3])
    together = model(ids, position_ids=rows)
    apart = torch.cat([model(ids[i : i + 1], position_ids=rows[i]) for i in range(2)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_for_the_tokens_that_count(side):
    model, ids = build(dtype=torch.float64), tokens(batch=1, seq=8)
    padding, ones = torch.full((1, 4), 5), torch.ones(1, 8, dtype=torch.long)
    parts = [(padding, torch.zeros(1, 4, dtype=torch.long)), (ids, ones)]
    parts = parts if side == "left" else parts[::-1]
    padded, mask = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
    logits = model(padded, attention_mask=mask)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[mask.bool()], model(ids)[0], rtol=1e-9, atol=1e-9)


def test_rotary_tables_are_float32_for_bfloat16_and_float64_for_float64():
    positions = torch.arange(4)
    assert rotary_tables(positions, 8, 1e4, torch.bfloat16)[0].dtype == torch.float32
    assert rotary_tables(positions, 8, 1e4, torch.float64)[0].dtype == torch.float64


def test_a_model_holds_no_buffers():
    assert not list(build().named_buffers())


def test_a_module_fills_by_name():
    assert isinstance(build(), InitializesByName)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_model_built_on_meta_and_filled_module_by_module_is_whole(tie_embeddings):
    with torch.device("meta"):
        model = gpt(2, tie_embeddings=tie_embeddings, **SMALL)()
    assert all(parameter.is_meta for parameter in model.parameters())
    materialise(model, seed=3)
    assert (model.head.weight is model.embed.weight) == tie_embeddings
    assert model(tokens()).isfinite().all()


def test_initial_weights_have_the_documented_spread():
    model = build(width=128)
    stds = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim == 2}
    for name, std in stds.items():
        writes_residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
        assert std == pytest.approx(0.02 / 2 if writes_residual else 0.02, rel=0.05), name
    assert all((parameter == 1).all() for parameter in model.parameters() if parameter.ndim == 1)


def test_a_fresh_model_guesses_evenly():
    model, ids = build(), tokens(batch=8)
    loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(257), abs=0.05)


def test_a_generator_decides_the_weights():
    first, second = (materialise(build(), seed=7) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def gradients(model, forward):
    model.zero_grad()
    logits = forward(tokens())
    logits.float().square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


def test_checkpointing_the_blocks_changes_no_gradient():
    model = build(dtype=torch.float64, num_kv_heads=2)
    plain = gradients(model, model)
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    for one, other in zip(plain, gradients(model, model), strict=True):
        assert torch.equal(one, other)


# torch hides this warning of its own by a handler, which comes too late where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiling_each_block_changes_no_gradient():
    model = build(dtype=torch.float64, num_kv_heads=2)
    plain = gradients(model, model)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for one, other in zip(plain, gradients(model, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_autocast_to_bfloat16_stays_near_float32():
    model = build(num_kv_heads=2)
    plain = model(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(tokens())
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), plain, rtol=0.05, atol=0.02)
    gradients(model, model)


def test_a_model_in_bfloat16_runs():
    assert build(dtype=torch.bfloat16)(tokens()).dtype == torch.bfloat16


def test_it_learns_a_repeated_sequence():
    model, ids = build(), tokens(batch=4, seq=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0


def test_every_query_sees_a_key_whatever_is_masked():
    mask = causal_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]))
    assert mask.shape == (3, 1, 4, 4)
    assert mask.any(-1).all()
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]

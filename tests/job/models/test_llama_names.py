"""Our weights in transformers' own Llama: the same logits."""

import pytest
import torch

from konvoi.errors import JobError
from konvoi.job.models import gpt
from konvoi.job.models.llama_names import llama_config, llama_name

transformers = pytest.importorskip("transformers")

CASES = [
    {},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "tie_embeddings": True},
    {"head_dim": 16, "num_heads": 2, "mlp_width": 48, "rope_theta": 500.0},
]


def pair(**sizes):
    torch.manual_seed(0)
    recipe = gpt(2, **{"width": 32, "num_heads": 4, "vocab_size": 97, "seq_len": 24, **sizes})
    ours = recipe()
    with torch.no_grad():
        for parameter in ours.parameters():  # so that each norm and each sharpness of attention shows
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_config(recipe))).eval()
    theirs.load_state_dict({llama_name(name): tensor for name, tensor in ours.state_dict().items()})
    return ours, theirs


def tokens():
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", CASES)
@torch.no_grad()
def test_llama_gives_the_same_logits(sizes):
    ours, theirs = pair(**sizes)
    expected = theirs(tokens()).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(ours(tokens()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_llama_gives_the_same_logits_under_a_mask_and_other_positions():
    ours, theirs = pair(num_kv_heads=2)
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, :5], mask[2, 11:] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens(), attention_mask=mask, position_ids=positions).logits
    actual = ours(tokens(), attention_mask=mask, position_ids=positions)
    counts = mask.bool()
    torch.testing.assert_close(actual[counts], expected[counts], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", CASES)
def test_every_weight_of_llama_has_one_of_ours(sizes):
    ours, theirs = pair(**sizes)
    assert {llama_name(name) for name in ours.state_dict()} == set(theirs.state_dict())
    assert {llama_name(name) for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}


def test_the_configuration_says_what_transformers_would_write():
    recipe = gpt(2, num_kv_heads=1, vocab_size=97, seq_len=24, rope_theta=5000.0)
    written = transformers.LlamaConfig(**llama_config(recipe)).to_dict()
    for key, value in llama_config(recipe).items():
        if key != "rope_theta":  # the old place of rope_parameters["rope_theta"]
            assert written[key] == value, key


def test_an_export_before_the_data_is_known_is_refused():
    with pytest.raises(JobError, match="exported"):
        llama_config(gpt(2, vocab_size=97))

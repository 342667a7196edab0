"""Adapters: what is trained, saved, resumed and exported is theirs alone, whatever the plan."""

import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import CheckpointMismatch, ConfigError, JobError, WorkerError
from konvoi.job import adapt
from konvoi.job.models.llama_names import llama_name
from konvoi.proof.cases import Images
from konvoi.values import base_name, is_adapter
from tests import small
from tests.test_resume import stop_after

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FIELDS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("saved")
    config = transformers.LlamaConfig(vocab_size=257, num_key_value_heads=2, tie_word_embeddings=True, **FIELDS)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def job(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    data = kv.data.text(str(folder / "text.txt"), seq_len=15, cache_dir=folder)
    fields = {"data": data, "objective": kv.objectives.next_token(), "steps": 8, "adapt": adapt.lora(rank=3)}
    fields["optimizer"] = small.STEADY
    return lambda **more: small.job(**{"model": kv.models.hf(str(saved)), **fields, **more})


@pytest.fixture(scope="module")
def reference(agent, job, tmp_path_factory):
    return small.train(agent, tmp_path_factory.mktemp("reference"), job(), kv.Island())


PLANS = {
    "fsdp2 from dp2": (kv.Island(dp=2), kv.Island(fsdp=2)),
    "tp2 from pp2": (kv.Island(pp=2), kv.Island(tp=2)),
    "1 from tp2 fsdp2": (kv.Island(tp=2, fsdp=2), kv.Island()),
}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), PLANS.values(), ids=PLANS.keys())
def test_adapters_follow_from_plan_to_plan(agent, job, reference, tmp_path, first, then):
    with pytest.raises(WorkerError, match="InterruptedError"):
        small.train(agent, tmp_path, job(hooks=stop_after(5)), first, checkpoint_every=4)
    run = small.train(agent, tmp_path, job(), then, resume="run")
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(reference.losses), rtol=1e-4, atol=1e-6)
    whole, expected = small.state(run), small.state(reference)
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-4, atol=1e-5)


def test_only_adapters_are_trained_and_saved(saved, reference):
    kept = small.state(reference, "model.")
    assert {name.split(".")[-3] for name in kept} == {"lora_A", "lora_B"}
    assert len(kept) == 2 * 7 * 4  # of seven matrices in four blocks
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved).state_dict()
    mine = reference.model().state_dict()
    assert all(torch.equal(mine[n], theirs[n.replace(".base_layer", "")]) for n in mine if ".lora_" not in n)
    assert any(tensor.any() for name, tensor in kept.items() if ".lora_B." in name)


def test_peft_loads_the_adapter_and_transformers_the_merged_model(saved, reference, tmp_path):
    with torch.no_grad():
        expected = reference.model()(IDS).logits
    adapter = reference.save_pretrained(tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(saved)
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(reference.save_pretrained(tmp_path / "out", merge=True))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.eval()(IDS).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(theirs.disable_adapter_layers() or theirs(IDS).logits, expected, atol=1e-3)
    assert theirs.peft_config["default"].target_modules == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.slow
def test_a_gpt_of_ours_is_exported_in_the_llama_layout(agent, job, tmp_path):
    model = kv.models.gpt(depth=2, width=16, num_heads=2, num_kv_heads=1)
    run = small.train(agent, tmp_path, job(model=model, adapt=adapt.lora(targets=("*.q", "*.o"))), kv.Island(fsdp=2))
    merged = transformers.AutoModelForCausalLM.from_pretrained(run.save_pretrained(tmp_path / "out", merge=True))
    adapter = run.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = run.model()(IDS)
        torch.testing.assert_close(merged.eval()(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    # Taken off what it was added to, and put on again, it changes nothing.
    state = {base_name(name): tensor for name, tensor in run.model().state_dict().items() if not is_adapter(name)}
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base.load_state_dict({llama_name(name): tensor for name, tensor in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(peft.PeftModel.from_pretrained(base, adapter).eval()(IDS).logits, expected)


@pytest.mark.slow
def test_a_new_head_is_trained_beside_adapters_and_exported_with_them(agent, tmp_path):
    fields = FIELDS | {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 4}
    base = transformers.ViTForImageClassification(transformers.ViTConfig(**fields))
    base.save_pretrained(tmp_path / "base")
    lora = adapt.lora(rank=2)
    model = kv.models.hf(str(tmp_path / "base"), kind="images", new=("classifier.*",))
    run = small.train(agent, tmp_path, small.job(model=model, data=Images(), adapt=lora, steps=5))
    names = set(small.state(run, "model."))
    assert {name for name in names if ".lora_" not in name} == {"classifier.weight", "classifier.bias"}
    theirs = peft.PeftModel.from_pretrained(base, run.save_pretrained(tmp_path / "adapter")).eval()
    images = torch.stack([torch.from_numpy(Images()[n]["inputs"]) for n in range(4)])
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, run.model()(images).logits, rtol=1e-5, atol=1e-6)


def test_a_module_that_is_given_stays_as_it_is():
    mine = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    adapted = adapt.lora(rank=2).on(mine)()
    assert isinstance(mine[0], nn.Linear)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        f"{layer}.lora_{letter}.default.weight" for layer in (0, 2) for letter in "AB"
    }
    assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in before.items())
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in adapt.lora().on(mine)().parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapt.lora(rank=0), "rank"),
        (lambda: adapt.lora(alpha=0), "alpha"),
        (lambda: adapt.lora(dropout=1), "dropout"),
        (lambda: adapt.lora(targets="q_proj"), r"targets=\('q_proj',\)"),
        (adapt.lora(targets=("q_prj",)).on(nn.Sequential(nn.Linear(2, 2))), "no module"),
        (adapt.lora(modules_to_save=("head",)).on(nn.Sequential(nn.Linear(2, 2))), "no module"),
        (adapt.lora().on(nn.Sequential(nn.Conv2d(1, 1, 1))), "no matrix"),
        (lambda: small.job(adapt="lora"), r"adapt=kv.adapt.lora\(rank=8\)"),
    ],
    ids=["rank", "alpha", "dropout", "text", "targets", "modules_to_save", "matrix", "kind"],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(JobError, match=message):
        make()


@pytest.mark.slow
def test_a_base_that_was_drawn_is_kept_with_its_adapters(agent, tmp_path):
    lora = adapt.lora(rank=2)
    run = small.train(agent, tmp_path, small.job(adapt=lora, steps=4))
    assert any(".base_layer." in name for name in small.state(run, "model."))
    with_frozen = small.job(adapt=lora, steps=4, freeze=("*.lora_A.*",))
    frozen = small.train(agent, tmp_path, with_frozen, name="frozen")
    assert any(".lora_A." in name for name in small.state(frozen, "model."))
    # Another seed changes what comes, and not what was drawn.
    before = run.model().state_dict()
    after = small.train(agent, tmp_path, small.job(adapt=lora, steps=6, seed=9), resume="run").model().state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        n for n in before if ".lora_" in n
    }


@pytest.mark.slow
def test_a_checkpoint_of_other_adapters_is_refused(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(adapt=adapt.lora(rank=2), steps=4))
    with pytest.raises(CheckpointMismatch, match="other adapters"):
        small.train(agent, tmp_path, small.job(adapt=adapt.lora(rank=2, alpha=1), steps=6), resume="run")
    small.train(agent, tmp_path, small.job(steps=4), name="plain")
    with pytest.raises(CheckpointMismatch, match="another model"):
        small.train(agent, tmp_path, small.job(steps=6), resume="run")
    with pytest.raises(ConfigError, match="nothing to merge"):
        kv.save_pretrained(tmp_path / "plain", tmp_path / "out", merge=True)
    assert run.evaluate()["loss"] > 0


def test_torchs_own_transformer_hears_its_adapters_in_evaluation_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    adapted = adapt.lora(rank=2).on(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))()
    names = [name for name, _ in adapted.named_parameters() if ".lora_" in name]
    assert names
    assert not any("out_proj" in name for name in names)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
        inputs = torch.randn(2, 3, 8)
        torch.testing.assert_close(adapted.eval()(inputs), adapted.train()(inputs))


def test_a_weight_in_two_places_is_refused(saved):
    with pytest.raises(JobError, match="two places"):
        adapt.lora(targets=("lm_head",)).on(kv.models.hf(str(saved)))()
    with pytest.raises(JobError, match="two places"):
        adapt.lora(modules_to_save=("lm_head",)).on(kv.models.hf(str(saved)))()


def test_targets_mean_the_same_for_a_mixture_of_experts():
    """PEFT rewrites the targets of such models by their type."""
    fields = FIELDS | {"model_type": "mixtral", "vocab_size": 99, "num_key_value_heads": 2, "num_local_experts": 2}
    adapted = adapt.lora(rank=2, targets=("*.0.self_attn.q_proj",)).on(kv.models.hf(fields))()
    assert {name.partition(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name} == {
        "model.layers.0.self_attn.q_proj"
    }

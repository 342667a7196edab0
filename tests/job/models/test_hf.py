"""Models of transformers as recipes: what they are built from, and what they refuse."""

import json

import pytest
import torch

import konvoi as kv
from konvoi.errors import JobError
from konvoi.job import models
from konvoi.plan.split.materialize import build, materialize
from konvoi.proof.cases import Images
from konvoi.values import DataSpec
from tests import small

transformers = pytest.importorskip("transformers")

FIELDS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 64, **FIELDS}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as transformers writes it, of two files and tied embeddings."""
    folder = tmp_path_factory.mktemp("saved")
    config = transformers.LlamaConfig(vocab_size=257, tie_word_embeddings=True, **FIELDS)
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def same(mine, theirs):
    theirs = dict(theirs.named_parameters())
    return all(torch.equal(parameter, theirs[name]) for name, parameter in mine.named_parameters())


def test_weights_are_read_from_a_folder_whole_or_module_by_module(saved):
    theirs = transformers.LlamaForCausalLM.from_pretrained(saved)
    whole = models.hf(saved)()
    assert same(whole, theirs)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    module = build(models.hf(saved), 0, CPU, torch.float32)
    assert all(parameter.is_meta for parameter in module.parameters()), "read before it was asked for"
    materialize(module, 0, CPU, [("", module)], lambda unit: None)
    assert same(module, theirs)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(module.eval()(ids).logits, theirs.eval()(ids).logits)


def test_new_weights_are_asked_for(saved):
    assert not same(models.hf(saved, weights=False)(), transformers.LlamaForCausalLM.from_pretrained(saved))


def test_the_data_decides_what_is_open():
    assert models.hf(LLAMA).fit(DataSpec(vocab_size=257)).config()["vocab_size"] == 257
    vit = models.hf({"model_type": "vit", **FIELDS}, kind="images").fit(DataSpec(num_classes=7))
    assert vit.config()["num_labels"] == 7
    assert models.hf(transformers.LlamaConfig(**FIELDS)).config()["model_type"] == "llama"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: models.hf(LLAMA, kind="casual"), "unknown kind"),
        (lambda folder: models.hf(LLAMA, weights=True), "no weights"),
        (lambda folder: models.hf(folder / "none").config(), "no configuration"),
        (lambda folder: models.hf(FIELDS).config(), "no model_type"),
        (lambda folder: models.hf(LLAMA | {"vocab_size": 9}).fit(DataSpec(vocab_size=257)), "smaller than the data's"),
    ],
    ids=["kind", "weights", "folder", "type", "vocabulary"],
)
def test_what_does_not_fit_is_refused(saved, make, message):
    with pytest.raises(JobError, match=message):
        make(saved)


def base_of_images(folder):
    fields = FIELDS | {"image_size": 8, "patch_size": 4, "num_channels": 1}
    model = transformers.ViTModel(transformers.ViTConfig(**fields), add_pooling_layer=False)
    model.save_pretrained(folder)
    return model


def test_a_new_head_is_drawn_on_the_weights_of_a_base_model(tmp_path):
    """Some of the parameters come from a folder, under names without the model's own prefix; the head is another's."""
    theirs = base_of_images(tmp_path / "base")
    recipe = models.hf(tmp_path / "base", kind="images", new=("classifier.*",)).fit(DataSpec(num_classes=7))
    made = []
    for seed in (0, 0, 1):
        module = build(recipe, seed, CPU, torch.float32)
        assert all(parameter.is_meta for parameter in module.parameters())
        materialize(module, seed, CPU, [("", module)], lambda unit: None)
        assert same(theirs, module.vit)
        made.append(module.classifier.weight)
    assert made[0].shape == (7, 32)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert 0.01 < made[0].std() < 0.04  # as transformers draws it
    with pytest.raises(JobError, match="other names") as caught:
        models.hf(tmp_path / "base", kind="images")()
    assert "new=('classifier.*',)" in caught.value.hint
    with pytest.raises(JobError, match="new names no parameter"):
        models.hf(tmp_path / "base", kind="images", new=("head.*",))()


@pytest.mark.slow
def test_a_new_head_is_trained_alike_by_stages(agent, tmp_path):
    base_of_images(tmp_path / "base")
    job = small.job(
        model=models.hf(str(tmp_path / "base"), kind="images", new=("classifier.*",), num_labels=4),
        data=Images(),
        steps=3,
    )
    alone = small.train(agent, tmp_path, job, kv.Island(), name="alone")
    run = small.train(agent, tmp_path, job, kv.Island(pp=2))
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(alone.losses), rtol=1e-4, atol=1e-6)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(JobError, match="other names") as caught:
        models.hf(tmp_path)()
    assert "gpt_neox" in caught.value.found


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(kv.Island(tp=2), id="tp", marks=pytest.mark.slow),
        pytest.param(kv.Island(pp=2), id="pp", marks=pytest.mark.slow),
        pytest.param(kv.Island(fsdp=2), id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_folder_is_finetuned_under_a_plan_and_exported_for_transformers(agent, saved, tmp_path, plan):
    (tmp_path / "text.txt").write_text("to be or not to be, " * 300)
    data = kv.data.text(str(tmp_path / "text.txt"), seq_len=16, cache_dir=tmp_path)
    job = small.job(model=kv.models.hf(str(saved)), data=data, objective=kv.objectives.next_token(), steps=4)
    alone = small.train(agent, tmp_path, job, kv.Island(), name="alone")
    run = small.train(agent, tmp_path, job, plan)
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(alone.losses), rtol=1e-4, atol=1e-6)
    folder = kv.save_pretrained(run.folder, tmp_path / "out", shard_bytes=20_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, run.model()(ids).logits, rtol=1e-5, atol=1e-6)

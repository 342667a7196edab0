import json

import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.state.safetensors import read
from tests import small
from tests.verbs.texts import text_job


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_a_gpt_is_loaded_by_transformers_with_equal_logits(agent, folder, tmp_path, tie):
    transformers = pytest.importorskip("transformers")
    run = small.train(agent, folder, text_job(folder, tie_embeddings=tie), name=f"tie-{tie}")
    assert run.save_pretrained(tmp_path / "out") == tmp_path / "out"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, run.model()(ids), rtol=1e-4, atol=1e-5)
    assert ("lm_head.weight" in read(tmp_path / "out/model.safetensors")) != tie


def test_another_model_is_safetensors_and_a_config(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(ema=0.9))
    kv.save_pretrained(run.folder, tmp_path / "out")
    weights = read(tmp_path / "out/model.safetensors")
    assert small.differences(weights, small.state(run, "ema.")) == []
    assert json.loads((tmp_path / "out/config.json").read_text())["widths"] == [12, 12]


def with_buffers():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_callables_model_is_exported_with_its_buffers(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(model=with_buffers))
    weights = read(kv.save_pretrained(run.folder, tmp_path / "out") / "model.safetensors")
    module = with_buffers()
    module.load_state_dict(weights)
    assert module[1].num_batches_tracked == 20
    assert "with_buffers" in json.loads((tmp_path / "out/config.json").read_text())["konvoi_model"]

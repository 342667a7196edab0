"""tp in whole runs, and what it refuses. That the steps are right is the table's."""

import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import PlanError
from konvoi.job import models
from konvoi.observe.events import Ready, RunStarted
from konvoi.plan.split import feasible
from konvoi.plan.split.tensor_plan import inferred, plan_of, styles
from tests import small

GPT = models.gpt(depth=2, width=16, num_heads=4, num_kv_heads=2, vocab_size=11, seq_len=8)


class Attention(nn.Module):
    """As many write it: three projections, their heads in a field, and what puts them together."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias has no gradient but noise, which Adam magnifies
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        wide = 3 * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Plain(nn.Module):
    """A model that knows nothing of tp: learned positions, a head with a bias."""

    def __init__(self, vocab=257, width=16, heads=4, depth=2, length=64, dropout=0.0):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, vocab)

    def forward(self, ids):
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def job(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, " * 300)
    data = kv.data.text(str(tmp_path / "text.txt"), seq_len=15, cache_dir=tmp_path)  # odd: no axis divides it
    model = kv.models.gpt(depth=2, width=16, num_heads=2, num_kv_heads=1, tie_embeddings=True)
    fields = {"model": model, "data": data, "objective": kv.objectives.next_token(), "ema": 0.9}
    return lambda **more: small.job(**fields | {"validate_every": 6, "steps": 6} | more)


@pytest.mark.parametrize(
    ("plan", "model"),
    [
        pytest.param(kv.Island(tp=2), {"sample_prompt": "to "}, marks=pytest.mark.slow),
        pytest.param(kv.Island(tp=2, sequence_parallel=True, dp=2), {}, marks=pytest.mark.slow),
        pytest.param(kv.Island(tp=2, pp=2, accumulate=2), {}, marks=pytest.mark.slow),
        pytest.param(kv.Island(tp=2), {"model": Plain}, marks=pytest.mark.slow),
        pytest.param(kv.Island(tp=2, fsdp=2, sequence_parallel=True), {"model": Plain}, marks=pytest.mark.slow),
    ],
    ids=["tp", "dp tp sequence", "tp pp", "inferred", "fsdp tp sequence inferred"],
)
def test_a_run_under_tp_tells_what_a_run_of_one_worker_tells(agent, tmp_path, job, plan, model):
    alone = small.train(agent, tmp_path, job(**model), kv.Island(), name="alone")
    run = small.train(agent, tmp_path, job(**model), plan)
    small.tells_the_same(run, alone)


@pytest.mark.slow
def test_how_a_model_is_cut_is_said_at_the_start(agent, tmp_path, job):
    (started,) = small.events(small.train(agent, tmp_path, job(model=Plain, steps=1), kv.Island(tp=2)), RunStarted)
    (line,) = [line for line in started.derived if line.startswith("tp = ")]
    assert "layers.*.attention.out rowwise" in line
    assert "(inferred)" in line


def test_what_a_plain_model_is_cut_by():
    with torch.device("meta"):
        found = inferred(Plain())
    assert found == {
        "layers.*.attention.query": "colwise",
        "layers.*.attention.value": "colwise",
        "layers.*.attention.key": "colwise",
        "layers.*.attention.out": "rowwise",
        "layers.*.mlp.1": "colwise",
        "layers.*.mlp.3": "rowwise",
        "tokens": "embedding_rowwise",
        "head": "colwise",
    }


def test_keys_and_values_of_fewer_heads_than_workers_stay_whole():
    module = GPT()
    found = styles(module, plan_of(module), 4)
    assert found["blocks.0.attention.q"] == "colwise"
    assert found["blocks.0.attention.k"] == found["blocks.0.attention.v"] == "replicate"
    assert styles(module, plan_of(module), 2)["blocks.0.attention.k"] == "colwise"


class Declared(nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.tp_plan = plan
        self.up = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "tp", "message", "found"),
    [
        (GPT, 3, "does not divide the heads", "4 heads in blocks.0.attention for tp=3"),
        (
            models.gpt(depth=1, width=24, num_heads=12, num_kv_heads=6, vocab_size=5, seq_len=4),
            4,
            "neither divides the heads of keys and values",
            "6 in blocks.0.attention for tp=4",
        ),
        (lambda: nn.Linear(2, 2), 2, "does not know how to cut", "Linear without a tp_plan"),
        (lambda: Plain(dropout=0.1), 2, "dropout", "1 modules, drop the first, for tp=2"),
        (lambda: Declared({"up": "columnwise"}), 2, "unknown style", "up: columnwise"),
        (lambda: Declared({"upp": "colwise"}), 2, "names no module", "upp"),
    ],
    ids=["heads", "kv heads", "nothing known", "dropout", "style", "name"],
)
def test_what_cannot_be_cut_is_refused_with_the_numbers(model, tp, message, found):
    with pytest.raises(PlanError, match=message) as caught:
        feasible.check(model, kv.objectives.next_token(), None, kv.Island(tp=tp), "cpu")
    assert caught.value.found.startswith(found)
    assert caught.value.hint or caught.value.expected


def test_a_refusal_comes_before_a_worker_starts(agent, tmp_path, job):
    with pytest.raises(PlanError, match="heads"):
        small.train(agent, tmp_path, job(), kv.Island(tp=4))
    assert not small.events(tmp_path / "run", Ready)


@pytest.mark.parametrize("fields", [{"zero": 2}, {"offload": True}], ids=str)
def test_zero_and_offload_are_ways_of_fsdp(fields):
    with pytest.raises(PlanError, match="ways of fsdp") as caught:
        kv.Island(**fields)
    assert kv.plan.parse(caught.value.hint).fsdp == 2


def test_there_is_no_fourth_stage_of_zero():
    with pytest.raises(PlanError, match="stage of ZeRO"):
        kv.Island(fsdp=2, zero=4)


def test_sequence_parallel_is_a_way_of_tp():
    with pytest.raises(PlanError, match="way of tp"):
        kv.Island(sequence_parallel=True)

"""Whole runs over a pipeline: what surrounds the steps. That the steps are right is the table's."""

import pytest
import torch

import konvoi as kv
from konvoi.errors import KonvoiError, PlanError
from konvoi.observe.events import Ready
from konvoi.plan.split import stages
from konvoi.values import MicroBatch
from tests import small


@pytest.fixture
def job(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, " * 300)
    data = kv.data.text(str(tmp_path / "text.txt"), seq_len=16, cache_dir=tmp_path)
    model = kv.models.gpt(depth=3, width=16, num_heads=2, tie_embeddings=True)
    fields = {"model": model, "data": data, "objective": kv.objectives.next_token(), "ema": 0.9}
    return lambda **more: small.job(**fields | {"validate_every": 6, "sample_prompt": "to ", "steps": 6} | more)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(kv.Island(pp=2), marks=pytest.mark.slow),
        pytest.param(kv.Island(pp=2, schedule="interleaved", accumulate=4), marks=pytest.mark.slow),
        pytest.param(kv.Island(dp=2, pp=2, schedule="gpipe"), marks=pytest.mark.slow),
    ],
    ids=lambda plan: str(plan.describe()),
)
def test_a_run_over_a_pipeline_tells_what_a_run_of_one_worker_tells(agent, tmp_path, job, plan):
    if plan.schedule == "interleaved":
        job = lambda job=job, **more: job(model=kv.models.gpt(depth=4, width=16, num_heads=2), **more)  # noqa: E731
    alone = small.train(agent, tmp_path, job(), kv.Island(), name="alone")
    run = small.train(agent, tmp_path, job(), plan)
    small.tells_the_same(run, alone)


@pytest.mark.slow
def test_a_model_that_has_too_few_blocks_is_refused_before_a_worker_starts(agent, tmp_path, job):
    with pytest.raises(PlanError, match="more stages than blocks") as caught:
        small.train(agent, tmp_path, job(global_batch=16), kv.Island(pp=4))
    assert caught.value.found == "4 stages for 3 blocks"
    assert not small.events(tmp_path / "run", Ready)


def test_frozen_first_stages_are_refused_with_what_to_do(agent, tmp_path, job):
    with pytest.raises(KonvoiError, match="nothing to train") as caught:
        small.train(agent, tmp_path, job(freeze=("embed*", "blocks.0.*", "blocks.1.*"), ema=None), kv.Island(pp=2))
    assert "fewer stages" in caught.value.hint


def test_a_module_that_is_used_behind_the_blocks_and_before_them_is_refused(agent, tmp_path):
    with pytest.raises(PlanError, match="two calls of one part") as caught:
        small.train(agent, tmp_path, small.job(model=ReachesBack), kv.Island(pp=2))
    assert caught.value.found.startswith("first is called again")


@pytest.mark.slow
def test_sums_and_norms_around_the_blocks_see_what_a_stage_has_received(agent, tmp_path):
    for model in (SumsAround, NormsAround):
        job = small.job(model=model)
        alone = small.train(agent, tmp_path, job, kv.Island(), name=f"{model.__name__} alone")
        run = small.train(agent, tmp_path, job, kv.Island(pp=2, accumulate=2), name=model.__name__)
        assert run.losses == pytest.approx(alone.losses, rel=1e-5)


def test_what_goes_around_the_blocks_beside_what_they_take_is_refused(agent, tmp_path):
    with pytest.raises(PlanError, match="more than what it takes is needed") as caught:
        small.train(agent, tmp_path, small.job(model=Around), kv.Island(pp=2))
    assert caught.value.found == "blocks.2 uses what came before; 1 stages at most, not 2"


def test_a_first_stage_that_is_reached_back_to_does_not_pass_unseen():
    """Where the calls are not known: what is elsewhere says nan, so that a wrong guess is no silent error."""
    batch = torch.randn(3, 6)
    ((stage,), _) = stages.cut_up(ReachesBack(), 1, 2, "1f1b")
    stage.connect()
    stage.set(lambda module, batch: module(batch), [MicroBatch(batch)])
    assert stage(torch.randn(3, 6), number=torch.zeros(1, dtype=torch.int64)).isnan().all()


class ReachesBack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(4))
        self.last = torch.nn.Linear(6, 2)

    def forward(self, inputs):
        x = self.first(inputs)
        for block in self.blocks:
            x = block(x).relu()
        return self.last(self.first(x))


class SumsAround(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(4))
        self.last = torch.nn.Linear(6, 2)

    def forward(self, inputs):
        x = self.first(inputs)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.last(x)


class NormsAround(SumsAround):
    """Stages may begin at a norm, which takes all there is."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(6) for _ in self.blocks)

    def forward(self, inputs):
        x = self.first(inputs)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x)).tanh()
        return self.last(x)


class Around(SumsAround):
    def forward(self, inputs):
        x = self.first(inputs)
        for block in self.blocks:
            x = x + block(x.tanh())
        return self.last(x)

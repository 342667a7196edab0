"""What cannot fit is refused before memory is taken, with the numbers; what may fit is tried."""

import pytest
import torch

import konvoi as kv
from konvoi.errors import PlanError
from konvoi.observe.events import Ready
from konvoi.plan.split.estimate import check_fits, least_bytes
from tests import small


def on_meta(**fields):
    with torch.device("meta"):
        return kv.models.gpt(depth=2, width=64, vocab_size=100, seq_len=8, **fields)()


def test_parameters_count_once_and_gradients_of_those_that_are_trained():
    module = on_meta(tie_embeddings=True)
    numbers = sum(parameter.numel() for parameter in module.parameters())
    assert least_bytes(module) == 8 * numbers
    module.requires_grad_(False)
    assert least_bytes(module) == 4 * numbers


def test_the_hint_names_a_number_of_workers_that_does_it():
    module = on_meta()
    available = least_bytes(module) // 3 - 1
    with pytest.raises(PlanError, match="does not fit") as caught:
        check_fits(module, kv.Island(fsdp=2), available)
    assert "over 4 workers or more" in caught.value.hint
    for plan in (kv.Island(fsdp=4), kv.Island(tp=2, pp=2), kv.Island(dp=2, fsdp=4)):
        check_fits(module, plan, available)
    with pytest.raises(PlanError):
        check_fits(module, kv.Island(dp=4), available)  # copies save nothing


@pytest.mark.parametrize(
    "plan", [kv.Island(dp=2), pytest.param(kv.Island(tp=2), marks=pytest.mark.slow), kv.Island(pp=2)], ids=str
)
def test_a_run_that_cannot_fit_ends_at_once(agent, tmp_path, plan):
    model = kv.models.gpt(depth=100, width=65536, num_heads=512, vocab_size=257, seq_len=16)
    (tmp_path / "text.txt").write_text("to be or not to be, " * 300)
    data = kv.data.text(str(tmp_path / "text.txt"), seq_len=16, cache_dir=tmp_path)
    if plan.dp == 1:
        agent = None  # these look at the model anyhow, and say so before a worker starts
    with pytest.raises(PlanError, match="does not fit") as caught:
        small.train(agent, tmp_path, small.job(model=model, data=data, objective=kv.objectives.next_token()), plan)
    assert "TB" in caught.value.found
    assert plan.dp == 2 or not small.events(tmp_path / "run", Ready)

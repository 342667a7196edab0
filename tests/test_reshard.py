"""A checkpoint written under any plan is read under any other, optimizer state included: all go on alike."""

import itertools
import shutil

import pytest
import torch

import konvoi as kv
from konvoi.errors import WorkerError
from tests import small
from tests.test_resume import stop_after

WRITTEN = {
    "dp2": kv.Island(dp=2),
    "fsdp3": kv.Island(fsdp=3),
    "tp2": kv.Island(tp=2),
    "pp2": kv.Island(pp=2),
    "fsdp2 tp2": kv.Island(fsdp=2, tp=2),
}
READ = {
    "1": kv.Island(),
    "fsdp2 zero1": kv.Island(fsdp=2, zero=1),
    "tp4": kv.Island(tp=4, sequence_parallel=True),
    "pp3": kv.Island(pp=3, accumulate=4),
    "tp2 pp2": kv.Island(tp=2, pp=2),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """No axis divides the vocabulary (257), the width of the MLP (37) or, by 3, the width (40)."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    data = kv.data.text(str(folder / "text.txt"), seq_len=15, cache_dir=folder)
    model = kv.models.gpt(depth=3, width=40, num_heads=4, num_kv_heads=2, mlp_width=37, tie_embeddings=True)
    fields = {"model": model, "data": data, "objective": kv.objectives.next_token(), "ema": 0.9, "steps": 8}
    fields["optimizer"] = small.STEADY
    return lambda **more: small.job(**fields | more)


@pytest.fixture(scope="module")
def reference(agent, job, tmp_path_factory):
    return small.train(agent, tmp_path_factory.mktemp("reference"), job())


@pytest.fixture(scope="module")
def interrupted(agent, job, tmp_path_factory):
    """The folder of a run that ended in the middle, by its plan."""
    folder = tmp_path_factory.mktemp("interrupted")

    def of(name):
        if not (folder / name).exists():
            with pytest.raises(WorkerError, match="InterruptedError"):
                small.train(agent, folder, job(hooks=stop_after(5)), WRITTEN[name], name=name, checkpoint_every=4)
        return folder / name

    return of


PAIRS = list(itertools.product(WRITTEN, READ))


@pytest.mark.slow
@pytest.mark.parametrize(("written", "read"), PAIRS)
def test_a_checkpoint_of_any_plan_goes_on_under_any_other(agent, job, reference, interrupted, tmp_path, written, read):
    shutil.copytree(interrupted(written), tmp_path / written)
    run = small.train(agent, tmp_path, job(), READ[read], resume=written, checkpoint_every=4)
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(reference.losses), rtol=1e-5, atol=1e-6)
    whole, expected = small.state(run), small.state(reference)
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-4, atol=1e-5)

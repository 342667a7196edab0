"""Programs that keep their own loops, several islands of one launch: together they learn what one island does."""

import json
import os
import subprocess
import sys

import pytest

from konvoi.errors import PlanError
from konvoi.verbs.join import join

PROGRAM = """
import json, os, sys
import torch
import konvoi as kv

plan = {plan}
torch.manual_seed(int(os.environ["RANK"]))  # the first one's weights count
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
draw = torch.Generator().manual_seed(5)
inputs = torch.randn(48, 6, generator=draw)
data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())

def objective(model, batch):
    loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")
    return loss, torch.tensor(float(len(batch[0])))

with kv.join(plan) as island:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    torch.manual_seed(7)
    model, optimizer, batches = island.prepare(model, optimizer, loader, objective=objective)
    for epoch in range(2):
        for batch in batches:
            island.forward_backward(batch)
            island.step(optimizer)
weights = [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten().tolist() for p in model.parameters()]
assert (island.worker, island.num_workers) == (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
with open(f"weights-{{os.environ['RANK']}}.json", "w") as file:
    json.dump(weights, file)
"""


def launch(folder, plan, workers):
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM.format(plan=plan))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run(
        [*launcher, "program.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"weights-{rank}.json").read_text()) for rank in range(workers)]


def assert_same(some, other):
    for one, two in zip(some, other, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_own_loops_that_gossip_end_with_the_same_weights(tmp_path):
    first, second = launch(tmp_path / "gossip", "kv.Island() | kv.gossip(every=1)", 2)
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_islands_that_agree_at_every_step_learn_what_data_parallel_workers_do(tmp_path):
    expected, _ = launch(tmp_path / "dp", "kv.Island(dp=2)", 2)
    first, second = launch(tmp_path / "convoy", "kv.Island() | kv.local_sgd(every=1)", 2)
    assert first == second
    assert_same(first, expected)
    together = launch(tmp_path / "of-two", "kv.Island(dp=2) | kv.local_sgd(every=1)", 4)
    assert all(one == together[0] for one in together)
    assert_same(together[0], expected)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_islands_that_agree_now_and_then_are_equal_when_they_have(tmp_path):
    first, second = launch(
        tmp_path / "convoy", "kv.Island() | kv.diloco(every=4, compression=kv.compress.low_bit(1))", 2
    )
    assert first == second


def test_a_program_that_was_started_alone_is_told_how(monkeypatch):
    import konvoi as kv

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(PlanError, match="several islands"), join(kv.local_sgd()):
        pass

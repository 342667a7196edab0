"""From `konvoi.train(...)` to the model's forward there are at most five functions of our own: one can step through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import konvoi as kv
from tests.frames_model import Watched

ROOT = Path(__file__).parents[1]
MAX_FRAMES = 5
DATA = {"inputs": np.ones((8, 2), np.float32), "labels": np.arange(8) % 2}
PROGRAM = """
import numpy as np
import konvoi as kv
from tests.test_frames import job
kv.train(job(), kv.Island(**{plan}), folder="runs", sinks=[])
"""
PLANS = [{}, {"dp": 2}, {"dp": 2, "accumulate": 2}, {"fsdp": 2}]


def job():
    return kv.Job(
        model=Watched,
        data=kv.data.tensors(**DATA),
        objective=kv.objectives.classification(),
        global_batch=4,
        steps=2,
        validate_every=0,
    )


def frames(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "plan", [pytest.param(plan, marks=[pytest.mark.slow] * (plan in PLANS[1:]), id=str(plan)) for plan in PLANS]
)
def test_in_a_worker_at_most_five_frames_of_ours_are_above_the_forward(tmp_path, monkeypatch, plan):
    monkeypatch.setenv("KONVOI_FRAMES", str(tmp_path / "frames"))
    plan = kv.Island(**plan)
    kv.train(job(), plan, kv.fleet.local(plan.num_workers, device="cpu", oversubscribe=True), folder=tmp_path, sinks=[])
    found = frames(tmp_path / "frames")
    assert len(found) == 2 * plan.num_workers * plan.accumulate
    assert all(stack[-1].startswith("job/objectives.py") for stack in found), found[0]
    assert max(map(len, found)) <= MAX_FRAMES, found[0]


@pytest.mark.parametrize("plan", [{}, pytest.param({"accumulate": 2}, marks=pytest.mark.slow)], ids=str)
def test_under_torchrun_at_most_five_frames_are_between_train_and_the_forward(tmp_path, plan):
    environment = os.environ | {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "KONVOI_FRAMES": str(tmp_path / "frames"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
    }
    program = PROGRAM.replace("{plan}", repr(plan))
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True, timeout=60)
    found = frames(tmp_path / "frames")
    assert found
    assert found[0][0] == "verbs/train.py:train"
    assert max(map(len, found)) <= MAX_FRAMES, found[0]

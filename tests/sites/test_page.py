"""Somebody who has only the site's page gets from a package to a member that agreed, paused, resumed and left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "at-a-site.md"
RECIPE = """
import numpy as np
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0.2)

plan = kv.fedavg(rounds=900)

def job():
    return kv.Job(
        model=kv.models.mlp(), data=kv.data.slot(read, example="example.npz"),
        objective=kv.objectives.classification(), optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(), global_batch=16, validate_every=0,
    )
"""


def commands():
    """Of the page's shell blocks, a line each."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def data(path, seed):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(60, 4)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(np.int64))


@pytest.fixture
def start(tmp_path):
    """Start a command in a folder of its own, as a person would; ended with the test."""
    begun = []
    env = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start(words, folder, *, wait=True):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "konvoi", *words]
        with (folder / "log").open("a") as log:
            told = subprocess.PIPE if wait else log
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=told, stderr=log, text=True)
        if not wait:
            begun.append(process)
            return process
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, (words, (folder / "log").read_text()[-2000:])
        return told

    yield start
    for process in begun:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(what, why, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_page_of_a_site_is_enough(start, tmp_path):
    assert len(commands()) >= 10
    server, site, other = (tmp_path / name for name in ("server", "site", "other"))
    for folder in (server, site, other):
        folder.mkdir()
    data(server / "example.npz", 0), data(site / "data.npz", 1), data(other / "data.npz", 2)
    (server / "study.py").write_text(RECIPE)
    port = 7800 + os.getpid() % 1000
    start(
        ["federation", "start", "--name", "test", "--listen", f"127.0.0.1:{port}", "--at", f"127.0.0.1:{port}"],
        server,
        wait=False,
    )
    until(lambda: "listens at" in (server / "log").read_text(), (server / "log").read_text)
    for name, folder in (("site", site), ("other", other)):
        start(["federation", "invite", name, "--out", str(folder / "site.invite")], server)
    start(["federation", "pack", "study.py", "--purpose", "to see", "--tell", "loss,valid"], server)
    run = start(["federation", "submit", "study.pack"], server).strip()
    start(["join", "site.invite", "--data", "data.npz"], other, wait=False)
    until(lambda: "waits for a person" in (other / "log").read_text(), (other / "log").read_text)
    start(["federation", "approve"], other)

    def log():
        return (site / "log").read_text() if (site / "log").exists() else ""

    said = {}
    for line in commands():
        words = line.removesuffix("&").split()[1:]
        if words[:2] == ["federation", "review"]:
            until(lambda: "waits for a person" in log(), log)
        if words[:2] == ["federation", "pause"]:
            until(lambda: "has counted" in log(), log)
        said[" ".join(words[:2])] = start(words, site, wait=not line.endswith("&"))
        if words[:2] == ["federation", "resume"]:
            number = log().count("has counted")
            until(lambda number=number: log().count("has counted") > number, log)
    assert "to see" in said["federation review"]
    assert "study.py" in said["federation review"]
    assert "update" in said["federation outbox"]
    assert "paused: nothing leaves" in log()
    page = (site / "dossier.html").read_text()
    assert "What leaves site" in page
    assert "to see" in page
    until(
        lambda: (
            "site  " in start(["federation", "status"], server)
            and "has left" in start(["federation", "status"], server)
        ),
        log,
    )
    runs = start(["federation", "runs"], server)
    assert run in runs

"""An app that was written for Flower, and two lines more: in simulation, and at sites."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from konvoi.compat import flower
from konvoi.compat.flower import flwr
from konvoi.compat.flower.deployed import app_of
from konvoi.compat.flower.server import ClientManager, rounds
from konvoi.compat.flower.simulation import Here
from konvoi.errors import JobError
from konvoi.recipe import load_recipe
from konvoi.state import safetensors
from konvoi.verbs import packing
from tests.sites.test_page import start, until  # noqa: F401 (a fixture)

APP = Path(__file__).with_name("quickstart.py")
LINES = "from konvoi.compat import flower\n\nflower.stand_in()\n"
TRUTH = np.array([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True)
def no_flower(monkeypatch):
    """As if it had never been named in this process; and again behind the test."""
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if not isinstance(one, flwr._Finder)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "flwr"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "flwr"]:
        del sys.modules[name]


@pytest.fixture
def app(tmp_path):
    """The app with two lines above its first import; all else is as it was."""
    before = APP.read_text()
    after = before.replace("import numpy as np\n", f"{LINES}import numpy as np\n", 1)
    changes = [
        one for one in difflib.ndiff(before.splitlines(), after.splitlines()) if one[0] in "+-?" and one[2:].strip()
    ]
    assert changes == ["+ from konvoi.compat import flower", "+ flower.stand_in()"]
    assert "flwr" in before
    assert "konvoi" not in before
    (tmp_path / "app.py").write_text(after)
    return tmp_path / "app.py"


def by_hand(data, num_rounds=5, epochs=2):
    weights = np.zeros(3)
    for _ in range(num_rounds):
        moved = []
        for x, y in data:
            own = weights
            for _ in range(epochs):
                own = own - 0.02 * x.T @ (x @ own - y) / len(y)
            moved.append(own)
        weights = np.average(moved, axis=0, weights=[len(y) for _, y in data])
    return weights


def drawn(partition, rows=40):
    x = np.random.default_rng(partition).normal(partition, 1.0, (rows, 3))
    return x, x @ TRUTH


def test_two_lines_make_an_app_of_flower_one_of_konvoi(app):
    found = app_of(load_recipe(app))
    parts = flower.ServerAppComponents(strategy=found.strategy, config=flower.ServerConfig(found.rounds))
    history = rounds(parts, Here(found.client, 3, {}), ClientManager(3, 0))
    np.testing.assert_allclose(history.parameters[0], by_hand([*map(drawn, range(3))]), rtol=1e-5)
    assert history.losses_distributed[-1][1] < history.losses_distributed[0][1]
    assert [number for number, _ in history.metrics_distributed["mae"]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_it_runs_as_a_program_whose_clients_are_spread_over_processes(app):
    done = subprocess.run(
        [sys.executable, app], capture_output=True, text=True, timeout=110, check=False, cwd=app.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "losses_distributed" in done.stdout


def test_a_pack_of_it_needs_no_flower_and_shows_its_own_lines(app, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, made = packing.pack(app, purpose="x", tell=("loss", "valid", "mae"), out=tmp_path / "x.pack")
    assert made.kind == "flower"
    assert "flwr" not in made.requires
    assert b"from flwr.client import" in made.sources["app.py"]
    assert "valid_mae" in {field.name for field in made.leaves.frame("update").fields}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_file_trains_at_sites_that_are_processes(app, tmp_path, start):  # noqa: F811
    server, sites = tmp_path / "server", {name: tmp_path / name for name in "ab"}
    for folder in (server, *sites.values()):
        folder.mkdir()
    (server / "app.py").write_text(app.read_text())
    data = {name: drawn(number + 1, 20 + 10 * number) for number, name in enumerate(sites)}
    address = f"127.0.0.1:{8800 + os.getpid() % 1000}"
    words = ["federation", "start", "--name", "test", "--listen", address, "--at", address]
    start(words, server, wait=False)
    log = (server / "log").read_text
    until(lambda: "listens at" in log(), log)
    start(["federation", "pack", "app.py", "--purpose", "to see", "--tell", "loss,valid,mae"], server)
    run = start(["federation", "submit", "app.pack"], server).strip()
    for name, folder in sites.items():
        np.savez(folder / "data.npz", x=data[name][0], y=data[name][1])
        start(["federation", "invite", name, "--out", str(folder / "site.invite")], server)
        start(["join", "site.invite", "--data", "data.npz"], folder, wait=False)
    for folder in sites.values():
        until(lambda folder=folder: "waits for a person" in (folder / "log").read_text(), log)
        start(["federation", "approve"], folder)
    until(lambda: "over after 5 rounds" in log(), log)
    assert "held-out mae" in start(["federation", "runs"], server)
    pulled = server / start(["federation", "pull", run], server).strip()
    found = safetensors.read(pulled / "model.safetensors")["array 0"].numpy()
    np.testing.assert_allclose(found, by_hand(data.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("room", ["client", "server.strategy", "common", "app", "whatever.there"])
def test_what_is_imported_is_what_is_here_and_what_is_not_says_so(room):
    flower.stand_in()
    flower.stand_in()
    assert sum(isinstance(one, flwr._Finder) for one in sys.meta_path) == 1
    found = {}
    exec(f"import flwr as fl\nfrom flwr.{room} import NumPyClient, FedAvg\nfrom flwr.{room} import *", found)
    assert found["NumPyClient"] is found["fl"].client.NumPyClient is flower.NumPyClient
    assert found["FedAvg"] is found["fl"].server.strategy.FedAvg
    assert found["Context"] is flower.Context
    with pytest.raises(JobError, match="Flower's Grid is not"):
        exec(f"from flwr.{room} import Grid")


def test_flower_itself_is_not_put_aside_once_it_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", type(sys)("flwr"))
    sys.modules["flwr"].__file__ = "/where/it/is.py"
    with pytest.raises(JobError, match="Flower itself was imported before") as raised:
        flower.stand_in()
    assert raised.value.found == "/where/it/is.py"

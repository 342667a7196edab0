"""A Flower app, its lines of import changed, in a federation of sites."""

from __future__ import annotations

import numpy as np
import pytest

from konvoi.compat.flower.deployed import AtSite, app_of
from konvoi.errors import JobError, PlanError
from konvoi.recipe import load_recipe
from konvoi.sites import part
from konvoi.verbs import packing

APP = """
import numpy as np
from konvoi.compat.flower import (
    ClientApp, ConfigRecord, {strategy}, NumPyClient, ServerApp, ServerAppComponents, ServerConfig,
    ndarrays_to_parameters
)

class Client(NumPyClient):
    def __init__(self, context):
        self.data, self.state = np.load(context.node_config["data-path"]), context.state

    def fit(self, parameters, config):
        weights, seen = parameters
        rounds = self.state.config_records.setdefault("rounds", ConfigRecord({{"number": 0}}))
        rounds["number"] += 1
        assert rounds["number"] == config["round"]
        weights = weights + config["lr"] * (self.data.mean(0) - weights)
        return [weights, seen + 1], len(self.data), {{"loss": float(np.square(self.data - weights).mean())}}

    def evaluate(self, parameters, config):
        loss = float(np.square(self.data - parameters[0]).mean())
        return loss, len(self.data), {{"rows": len(self.data), "who": "x"}}

def server_fn(context):
    first = ndarrays_to_parameters([np.zeros(3, np.float32), np.zeros((), np.int64)])
    strategy = {strategy}(initial_parameters=first, on_fit_config_fn=lambda n: {{"lr": 0.5 / n, "round": n}})
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=3))

app = ServerApp(server_fn=server_fn)
client_app = ClientApp(client_fn=lambda context: Client(context).to_client())
"""


class InProcess:
    """In place of the process that trains."""

    def __init__(self, told, folder):
        assert told.kind == "flower"
        self.here = AtSite(told)

    def train(self, order, *, most_s, is_over):
        return self.here.round(order)

    def end(self):
        pass


def test_an_app_trains_at_sites_as_its_strategy_says(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "Process", InProcess)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "app.py").write_text(APP.format(strategy="FedAvg"))
    path, made = packing.pack(
        tmp_path / "app.py", purpose="x", tell=("loss", "valid", "rows"), out=tmp_path / "app.pack"
    )
    assert made.kind == "flower"
    data = {name: np.random.default_rng(n).normal(n, 1, (5 + 3 * n, 3)) for n, name in enumerate("abc")}
    for name, rows in data.items():
        np.save(tmp_path / f"{name}.npy", rows)
        federation.run(federation.site(name, path, data=str(tmp_path / f"{name}.npy")))
    federation.submit(path, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    total, weights = sum(map(len, data.values())), np.zeros(3)
    for number in (1, 2, 3):
        moved = {name: weights + 0.5 / number * (rows.mean(0) - weights) for name, rows in data.items()}
        weights = sum(len(data[name]) * one for name, one in moved.items()) / total
    run = federation.hosted()
    found = np.frombuffer((run.folder / "weights" / run.state.base).read_bytes(), "<f4")
    assert np.allclose(found[:3], weights, atol=1e-6)
    assert found[3] == 3  # a whole number that each counts up
    told = run.history()[0]["told"]
    assert told["valid_by_site"].keys() == data.keys()
    assert told["spread"]["valid_rows"]["max"] == max(map(len, data.values()))
    assert np.isclose(told["valid_by_site"]["b"], np.square(data["b"]).mean(), rtol=1e-5)
    mean = sum(len(rows) * told["valid_by_site"][name] for name, rows in data.items()) / total
    assert np.isclose(told["valid_loss"], mean)


def test_what_a_server_of_sites_cannot_do_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "app.py"
    path.write_text(APP.format(strategy="FedAdam"))
    with pytest.raises(JobError, match="another strategy") as raised:
        packing.pack(path, purpose="x", out=tmp_path / "a.pack")
    assert raised.value.found == "FedAdam"
    path.write_text(APP.format(strategy="FedAvg"))
    with pytest.raises(PlanError, match="says its plan itself"):
        packing.pack(path, purpose="x", plan="|fedavg,rounds=3", out=tmp_path / "a.pack")
    path.write_text(APP.format(strategy="FedAvg").replace("client_app =", "client_app2 = client_app ="))
    assert app_of(load_recipe(path)) is not None  # the same under two names
    path.write_text("x = 1\n")
    assert app_of(load_recipe(path)) is None

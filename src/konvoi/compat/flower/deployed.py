"""A Flower app in a federation of sites: what its `ServerApp` says goes into a pack, and its `ClientApp` runs beside a
site's data. `python -m konvoi.compat.flower.deployed` is the process that trains there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.compat.flower.client import ClientApp, arrays_of, evaluate_once, fit_once
from konvoi.compat.flower.records import Context, RecordDict
from konvoi.compat.flower.server import ServerApp
from konvoi.compat.flower.strategies import FedAvg, FedProx
from konvoi.compat.flower.values import Metrics, NDArrays, parameters_to_ndarrays
from konvoi.errors import JobError
from konvoi.plan.convoy import Convoy
from konvoi.plan.local import Local
from konvoi.recipe import load_recipe
from konvoi.sites.orders import Order, Result, Told
from konvoi.sites.trainer import serve

DATA = "data-path"  # in a site's `node_config`, as with `flower-supernode --node-config data-path=...`


@dataclass(frozen=True)
class App:
    """What a file of an app defines."""

    client: ClientApp
    strategy: FedAvg
    rounds: int

    def config(self, round: int) -> Metrics:
        """What clients are told in a round."""
        told = self.strategy.on_fit_config_fn(round) if self.strategy.on_fit_config_fn else {}
        return {**told, **({"proximal_mu": self.strategy.proximal_mu} if isinstance(self.strategy, FedProx) else {})}

    def plan(self) -> Convoy:
        """Raises: JobError for what a server of sites cannot do."""
        if type(self.strategy) not in (FedAvg, FedProx):
            found, expected = type(self.strategy).__name__, "FedAvg, FedProx"
            raise JobError("sites average by another strategy than this one, so far", found=found, expected=expected)
        cohort = 0 if self.strategy.fraction_fit == 1 else self.strategy.min_fit_clients
        return Convoy(rounds=self.rounds, cohort=cohort, local=Local())

    def first(self, data: str) -> NDArrays:
        """The arrays that all begin with: the strategy's, or those of a client with these data. Raises: JobError."""
        given = self.strategy.initial_parameters
        if given is not None:
            return parameters_to_ndarrays(given)
        return arrays_of(self.client.client(context(data)).get_parameters({}))


def app_of(module: ModuleType) -> App | None:
    """None where the file defines no Flower app. Raises: JobError for half of one."""
    clients = {id(one): one for one in vars(module).values() if isinstance(one, ClientApp)}
    servers = {id(one): one for one in vars(module).values() if isinstance(one, ServerApp)}
    if not clients and not servers:
        return None
    if len(clients) != 1 or len(servers) != 1:
        found = f"{len(clients)} ClientApp, {len(servers)} ServerApp"
        raise JobError("an app is one ClientApp and one ServerApp, in one file", found=found)
    (client,), (server,) = clients.values(), servers.values()
    components = server.components(Context())
    strategy, config = components.strategy or FedAvg(), components.config
    return App(client, strategy, config.num_rounds if config else 1)


def context(data: str, state: RecordDict | None = None) -> Context:
    """Of a site: the only partition there is."""
    config: Metrics = {"partition-id": 0, "num-partitions": 1, DATA: data}
    return Context(node_config=config, run_config={}, state=state or RecordDict())


def flat(arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """One behind the other, as what is agreed on is."""
    return np.concatenate([one.reshape(-1).astype("<f4") for one in arrays])


def arrays_from(row: NDArray[np.float32], like: Sequence[NDArray[Any]]) -> NDArrays:
    """The other way; whole numbers are rounded."""
    pieces = np.split(row, np.cumsum([one.size for one in like])[:-1])
    return [
        (np.rint(piece) if one.dtype.kind in "biu" else piece).reshape(one.shape).astype(one.dtype)
        for piece, one in zip(pieces, like, strict=True)
    ]


class AtSite:
    """The app's client, a round at a time. What it puts into `context.state` goes on when its update has counted."""

    def __init__(self, told: Told) -> None:
        """Raises: JobError."""
        found = app_of(load_recipe(Path(told.recipe)))
        if found is None:
            raise JobError("this file defines no Flower app", found=told.recipe)
        self.app, self.data = found, told.data
        self.like = found.first(told.data)

    def round(self, order: Order) -> Result:
        begin = arrays_from(np.fromfile(order.weights, "<f4"), self.like)
        state = pickle.loads(np.load(order.own)["state"].tobytes()) if order.own else RecordDict()
        here = context(self.data, state)
        client, result = self.app.client.client(here), Result()
        if order.evaluate:
            asked = self.app.strategy.on_evaluate_config_fn
            loss, number, metrics = evaluate_once(client, begin, asked(order.round) if asked else {})
            told = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
            result = replace(result, valid_loss=loss, valid_samples=number, metrics=told)
        arrays, number, metrics = fit_once(client, begin, self.app.config(order.round))
        move = flat(begin) - flat(arrays)
        kept = np.frombuffer(pickle.dumps(here.state), np.uint8)
        for path, of in ((order.out, {"move": move}), (order.keep, {"state": kept})):
            buffer = io.BytesIO()
            np.savez(buffer, **of)
            Path(path).write_bytes(buffer.getvalue())
        trained = metrics.get("train_loss", metrics.get("loss", 0.0))
        return replace(result, samples=number, loss=float(trained) if isinstance(trained, (int, float)) else 0.0)


if __name__ == "__main__":
    serve(AtSite)

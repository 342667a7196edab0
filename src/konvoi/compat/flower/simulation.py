"""`run_simulation`: a Flower app's clients, spread over this computer's workers."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from konvoi.compat.flower.client import ClientApp, NumPyClient, arrays_of, evaluate_once, fit_once
from konvoi.compat.flower.records import Context
from konvoi.compat.flower.server import Answer, Asked, ClientManager, History, ServerApp, rounds
from konvoi.compat.flower.values import Scalar
from konvoi.errors import FleetError, WorkerError
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.fleet.worker import Place
from konvoi.state.record import pickled

LONG_S = 7 * 86400.0  # where an app says nothing of a round's time


class Here:
    """Clients of this process, one after the other: the slow twin of `Spread`, and what each of its workers has."""

    def __init__(self, app: ClientApp, num_clients: int, run_config: Mapping[str, Scalar], worker: int = 0) -> None:
        self.app, self.num_clients, self.run_config, self.worker = app, num_clients, dict(run_config), worker
        self.contexts: dict[int, Context] = {}

    def ask(self, asked: Sequence[Asked], timeout_s: float | None = None) -> list[Answer]:
        return [self._one(one) for one in asked]

    def _one(self, asked: Asked) -> Answer:
        where: dict[str, Scalar] = {"partition-id": asked.client, "num-partitions": self.num_clients}
        fresh = Context(node_id=asked.client, node_config=where, run_config=self.run_config)
        context = self.contexts.setdefault(asked.client, fresh)
        try:
            client = self.app.client(context)
            if asked.what == "get_parameters":
                return Answer(asked.client, arrays_of(client.get_parameters(asked.config)))
            if asked.what == "evaluate" and type(client).evaluate is NumPyClient.evaluate:
                return Answer(asked.client)  # as in Flower, where many an app leaves it out
            once = fit_once if asked.what == "fit" else evaluate_once
            return Answer(asked.client, once(client, asked.ndarrays, asked.config))
        except Exception as error:
            return Answer(asked.client, error=self._failed(asked, error))

    def _failed(self, asked: Asked, error: Exception) -> WorkerError:
        why = f"the client of partition {asked.client} failed in {asked.what}: {type(error).__name__}: {error}"
        told = "".join(traceback.format_exception(error))
        return WorkerError(why, worker=self.worker, host=platform.node(), step=None, remote_traceback=told)


class Spread:
    """The same clients over a pool's workers. A client is always at the same one, with its data and its state."""

    def __init__(
        self, pool: Pool, app: ClientApp, num_clients: int, run_config: Mapping[str, Scalar], num_threads: int
    ) -> None:
        self.pool = pool
        self._run((pickled(app), num_clients, dict(run_config), num_threads), None)

    def ask(self, asked: Sequence[Asked], timeout_s: float | None) -> list[Answer]:
        found = {one.client: one for answers in self._run(list(asked), timeout_s) for one in answers}
        return [found[one.client] for one in asked]

    def _run(self, payload: Any, timeout_s: float | None) -> list[Any]:
        name, entry = "the clients", "konvoi.compat.flower.simulation:serve"
        return self.pool.run(entry, payload, self.pool.num_workers, name=name, timeout_s=timeout_s or LONG_S)


_here: list[Here] = []  # of a worker: what it has from one round to the next


def serve(place: Place, payload: Any) -> list[Answer]:
    """In a worker: first it gets the app, and then what is asked of its clients."""
    if isinstance(payload, list):
        return _here[0].ask([one for one in payload if one.client % place.num_workers == place.worker])
    import pickle

    app, num_clients, run_config, num_threads = payload
    _here[:] = [Here(pickle.loads(app), num_clients, run_config, place.worker)]
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(num_threads)
    return []


def run_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    backend_name: str = "ray",
    backend_config: Mapping[str, Any] | None = None,
    enable_tf_gpu_growth: bool = False,
    verbose_logging: bool = False,
    *,
    run_config: Mapping[str, Scalar] | None = None,
    seed: int = 0,
) -> History:
    """Run a Flower app's rounds with `num_supernodes` clients, and return the figures.

    Clients are spread over as many processes as `backend_config["client_resources"]` lets stand beside each other
    ("num_cpus", 1 where nothing is said, of this computer's cores; "num_gpus", of its accelerators, which all of them
    see); Ray is not needed, so that other fields of the backend change nothing. `run_config` is what apps find in
    `context.run_config`. Who takes part in a round follows from `seed`.

    Raises: JobError and FleetError before any worker starts; WorkerError for a client that failed where the strategy
    has `accept_failures=False`, or where all of a round's clients failed to train.

    >>> import numpy as np
    >>> from konvoi.compat.flower import *
    >>> class Client(NumPyClient):
    ...     def fit(self, parameters, config):
    ...         return [parameters[0] + 1], 10, {}
    >>> strategy = FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(2)]), fraction_evaluate=0.0)
    >>> server = ServerApp(config=ServerConfig(num_rounds=2), strategy=strategy)
    >>> run_simulation(server, ClientApp(lambda context: Client().to_client()), num_supernodes=2).parameters
    [array([2., 2.])]
    """
    if not isinstance(num_supernodes, int) or num_supernodes < 1:
        raise FleetError("num_supernodes is a number of at least 1", found=repr(num_supernodes))
    config = dict(run_config or {})
    parts = server_app.components(Context(run_config=config))
    # torch's own optimizers load this at their first step: once in the agent, and not in each worker.
    with AgentHandle(("torch._dynamo",) if "torch" in sys.modules else ()) as agent:
        resources = dict((backend_config or {}).get("client_resources") or {})
        num_workers = min(num_supernodes, _beside(resources, agent.hello()["machine"]))
        with Pool(agent, num_workers) as pool:
            clients = Spread(pool, client_app, num_supernodes, config, max(1, int(resources.get("num_cpus", 1))))
            return rounds(parts, clients, ClientManager(num_supernodes, seed))


def _beside(resources: Mapping[str, float], machine: Mapping[str, Any]) -> int:
    """How many clients can train beside each other. Raises: FleetError."""
    cores: int = machine["num_cores"]
    places = cores / max(1, resources.get("num_cpus", 1))
    if each := resources.get("num_gpus", 0):
        there = machine["num_devices"] if machine["device_kind"] != "cpu" else 0
        if each > there:
            raise FleetError("a client wants more accelerators than there are", found=each, expected=f"at most {there}")
        places = min(places, there / each)
    return max(1, int(places))

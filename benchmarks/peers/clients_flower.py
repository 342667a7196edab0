"""The same clients in Flower's simulation, with data preloaded in its actors and evaluation off."""

import logging
import os
import sys
import time
from pathlib import Path

import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = str(HERE)  # of the actors
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- 15 by itself: what other programs leave over
import _clients  # noqa: E402

FOLDER, CPUS = Path(sys.argv[1]), float(sys.argv[2])
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2


class Client(NumPyClient):
    def __init__(self, folder: str, threads: int, client: int) -> None:
        (self.work, self.model), self.client = _clients.preloaded(Path(folder), threads), client

    def fit(self, parameters, config):
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), parameters, strict=True):
                p.copy_(torch.from_numpy(value))
        _clients.train_one(self.model, self.work, config["round"] - 1, self.client)
        found = [p.detach().numpy() for p in self.model.parameters()]
        return found, self.work.samples(self.client), {}


class Timed(FedAvg):
    """FedAvg that notes when each round begins and ends."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.seconds, self.learnt, self.first = [], None, None

    def configure_fit(self, server_round, parameters, client_manager):
        client_manager.wait_for(self.min_available_clients)
        self.begin = time.perf_counter()
        self.first = self.first or time.time()
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        assert not failures, failures
        found = super().aggregate_fit(server_round, results, failures)
        self.seconds.append(time.perf_counter() - self.begin)
        self.learnt = found[0]
        return found


def main() -> None:
    begun = time.time()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = _clients.read(FOLDER)
    count, folder, threads = work.num_clients, str(FOLDER), max(1, int(CPUS))
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=count,
        min_available_clients=count,
        initial_parameters=ndarrays_to_parameters([p.numpy() for p in work.weights.values()]),
        on_fit_config_fn=lambda number: {"round": number},
        accept_failures=False,
    )

    def client_fn(context: Context):
        return Client(folder, threads, int(context.node_config["partition-id"])).to_client()

    def server_fn(context: Context) -> ServerAppComponents:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=len(work.batches)))

    resources = {"num_cpus": CPUS if CPUS < 1 else int(CPUS), "num_gpus": 0.0}
    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=ClientApp(client_fn=client_fn),
        num_supernodes=count,
        backend_config={"init_args": {"num_cpus": CORES}, "client_resources": resources},
    )
    learnt = dict(zip(work.weights, map(torch.tensor, parameters_to_ndarrays(strategy.learnt)), strict=True))
    _clients.finish(FOLDER, learnt, strategy.seconds, strategy.first - begun)


if __name__ == "__main__":
    main()

"""An app as people write it for Flower, in one file: no line of it knows of anything else. A regression by least
squares; each partition has unlike data, or those that its node's configuration names."""

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, Metrics, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

TRUTH = np.array([1.0, -2.0, 0.5])


def load_data(node_config):
    if "data-path" in node_config:
        found = np.load(node_config["data-path"])
        return found["x"], found["y"]
    draw = np.random.default_rng(node_config["partition-id"])
    x = draw.normal(node_config["partition-id"], 1.0, (40, 3))
    return x, x @ TRUTH


class Net:
    def __init__(self):
        self.weights = np.zeros(3, np.float32)


class FlowerClient(NumPyClient):
    def __init__(self, net, x, y):
        self.net, self.x, self.y = net, x, y

    def fit(self, parameters, config):
        (self.net.weights,) = parameters
        for _ in range(int(config["local-epochs"])):
            error = self.x @ self.net.weights - self.y
            self.net.weights = self.net.weights - 0.02 * self.x.T @ error / len(self.y)
        return [self.net.weights], len(self.y), {"loss": float(np.square(error).mean())}

    def evaluate(self, parameters, config):
        (self.net.weights,) = parameters
        error = self.x @ self.net.weights - self.y
        return float(np.square(error).mean()), len(self.y), {"mae": float(np.abs(error).mean())}


def client_fn(context: Context) -> Client:
    x, y = load_data(context.node_config)
    return FlowerClient(Net(), x, y).to_client()


def weighted_average(metrics: list[tuple[int, Metrics]]) -> Metrics:
    total = sum(number for number, _ in metrics)
    return {"mae": sum(number * one["mae"] for number, one in metrics) / total}


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=1.0,
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters([Net().weights]),
        on_fit_config_fn=lambda server_round: {"local-epochs": 2},
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=5))


app = ServerApp(server_fn=server_fn)
client = ClientApp(client_fn=client_fn)

if __name__ == "__main__":
    from flwr.simulation import run_simulation

    print(run_simulation(server_app=app, client_app=client, num_supernodes=3))  # noqa: T201

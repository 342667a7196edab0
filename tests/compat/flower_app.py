"""An app as people write it for Flower: a logistic regression whose clients have unlike data. Run as
`python flower_app.py STRATEGY FOLDER`; it leaves the parameters of each round and the evaluations in the folder."""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ConfigRecord, Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from flwr.simulation import run_simulation

NUM_CLIENTS, NUM_ROUNDS, NUM_FEATURES = 4, 3, 5
STRATEGIES = {"FedAvg": (FedAvg, {}), "FedProx": (FedProx, {"proximal_mu": 0.1})}
STRATEGIES |= {"FedAvgM": (FedAvgM, {"server_momentum": 0.9, "server_learning_rate": 0.8})}
STRATEGIES |= {one.__name__: (one, {"eta": 0.05, "tau": 1e-2}) for one in (FedAdam, FedYogi, FedAdagrad)}


def load(partition: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(partition)
    inputs = draw.normal(partition / 2, 1, (20 + 7 * partition, NUM_FEATURES))
    return inputs, (inputs.sum(1) + draw.normal(size=len(inputs)) > partition).astype(np.float64)


def probabilities(parameters, inputs):
    weights, bias = parameters
    return 1 / (1 + np.exp(-(inputs @ weights + bias)))


class FlowerClient(NumPyClient):
    def __init__(self, context: Context) -> None:
        self.inputs, self.labels = load(int(context.node_config["partition-id"]))
        self.state = context.state

    def fit(self, parameters, config):
        weights, bias = start = parameters
        rounds = self.state.config_records.setdefault("rounds", ConfigRecord({"number": 0}))
        rounds["number"] += 1
        for _ in range(3):
            error = probabilities((weights, bias), self.inputs) - self.labels
            pull = config.get("proximal_mu", 0.0)
            weights = weights - config["lr"] * (self.inputs.T @ error / len(error) + pull * (weights - start[0]))
            bias = bias - config["lr"] * (error.mean() + pull * (bias - start[1]))
        return [weights, np.asarray(bias)], len(self.inputs), {"rounds": rounds["number"]}

    def evaluate(self, parameters, config):
        there = probabilities(parameters, self.inputs)
        loss = float(-np.mean(np.log(np.where(self.labels == 1, there, 1 - there))))
        return loss, len(self.inputs), {"accuracy": float(np.mean((there > 0.5) == self.labels))}


def client_fn(context: Context):
    return FlowerClient(context).to_client()


def weighted(metrics):
    total = sum(number for number, _ in metrics)
    return {name: sum(number * one[name] for number, one in metrics) / total for name in metrics[0][1]}


def main(name: str, folder: Path) -> None:
    draw, noted = np.random.default_rng(99), {"losses": [], "metrics": []}
    make, options = STRATEGIES[name]

    def evaluate_fn(server_round, parameters, config):
        np.savez(folder / f"round-{server_round}.npz", *parameters)
        return float(np.square(parameters[0]).sum()), {}

    class Noting(make):
        def aggregate_evaluate(self, server_round, results, failures):
            loss, metrics = super().aggregate_evaluate(server_round, results, failures)
            noted["losses"].append(loss)
            noted["metrics"].append(metrics)
            return loss, metrics

        def aggregate_fit(self, server_round, results, failures):
            found, metrics = super().aggregate_fit(server_round, results, failures)
            noted["metrics"].append(metrics)
            noted["last"] = [one.tolist() for one in parameters_to_ndarrays(found)]
            return found, metrics

    def server_fn(context: Context):
        strategy = Noting(
            min_fit_clients=NUM_CLIENTS,
            min_available_clients=NUM_CLIENTS,
            min_evaluate_clients=NUM_CLIENTS,
            initial_parameters=ndarrays_to_parameters([draw.normal(size=NUM_FEATURES), np.zeros(())]),
            on_fit_config_fn=lambda server_round: {"lr": 0.5 / server_round},
            evaluate_fn=evaluate_fn,
            fit_metrics_aggregation_fn=weighted,
            evaluate_metrics_aggregation_fn=weighted,
            **options,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=NUM_ROUNDS))

    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=ClientApp(client_fn=client_fn),
        num_supernodes=NUM_CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    (folder / "noted.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

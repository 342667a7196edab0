"""Apps written for Flower's `NumPyClient`, on Konvoi: two lines above the others, and no `flwr` is needed.

`from konvoi.compat import flower` and `flower.stand_in()`, or, in every line that imports, `konvoi.compat.flower` for
`flwr` and what is in it. What is not here says so when it is imported, with the nearest way. Behaviour is that of
Flower 1.41 (https://flower.ai/docs/framework), but where docs/coming-from-flower-and-nvflare.md says otherwise.
"""

from konvoi.compat.flower.adaptive import FedAdagrad, FedAdam, FedAvgM, FedYogi
from konvoi.compat.flower.client import Client, ClientApp, NumPyClient, evaluate_once, fit_once
from konvoi.compat.flower.flwr import stand_in
from konvoi.compat.flower.missing import error_of
from konvoi.compat.flower.records import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from konvoi.compat.flower.server import ClientManager, History, ServerApp, ServerAppComponents, ServerConfig
from konvoi.compat.flower.simulation import run_simulation
from konvoi.compat.flower.strategies import FedAvg, FedProx
from konvoi.compat.flower.values import (
    ClientProxy,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Metrics,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

__all__ = [
    "ArrayRecord",
    "Client",
    "ClientApp",
    "ClientManager",
    "ClientProxy",
    "ConfigRecord",
    "Context",
    "EvaluateIns",
    "EvaluateRes",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "FedYogi",
    "FitIns",
    "FitRes",
    "History",
    "MetricRecord",
    "Metrics",
    "NDArrays",
    "NumPyClient",
    "Parameters",
    "RecordDict",
    "Scalar",
    "ServerApp",
    "ServerAppComponents",
    "ServerConfig",
    "evaluate_once",
    "fit_once",
    "ndarrays_to_parameters",
    "parameters_to_ndarrays",
    "run_simulation",
    "stand_in",
]


def __getattr__(name: str) -> object:
    raise error_of(name)

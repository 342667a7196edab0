"""`FedAvg` by Flower's arguments, and what its relatives share with it.

One of your own inherits from `FedAvg` and overrides what it wants, as in Flower: `configure_fit`, `aggregate_fit`,
`configure_evaluate`, `aggregate_evaluate`, `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from konvoi.compat.flower.values import (
    ClientProxy,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Metrics,
    NDArrays,
    Parameters,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from konvoi.errors import JobError

if TYPE_CHECKING:
    from konvoi.compat.flower.server import ClientManager

MetricsAggregationFn: TypeAlias = Callable[[list[tuple[int, Metrics]]], Metrics]


class FedAvg:
    """The mean of what clients return, by their samples (McMahan et al., arXiv 1602.05629, algorithm 1).

    A round asks `fraction_fit` of the clients, rounded down, and at least `min_fit_clients`. `inplace` changes nothing
    here: sums are always in float64.

    >>> FedAvg(fraction_fit=0.5, min_fit_clients=2).num_fit_clients(10)
    (5, 2)
    """

    def __init__(
        self,
        *,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 2,
        min_evaluate_clients: int = 2,
        min_available_clients: int = 2,
        evaluate_fn: Callable[[int, NDArrays, Metrics], tuple[float, Metrics] | None] | None = None,
        on_fit_config_fn: Callable[[int], Metrics] | None = None,
        on_evaluate_config_fn: Callable[[int], Metrics] | None = None,
        accept_failures: bool = True,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        inplace: bool = True,
    ) -> None:
        for name, share in (("fraction_fit", fraction_fit), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= share <= 1:
                raise JobError(f"{name} lies between 0 and 1", found=repr(share))
        self.fraction_fit, self.fraction_evaluate = fraction_fit, fraction_evaluate
        self.min_fit_clients, self.min_evaluate_clients = min_fit_clients, min_evaluate_clients
        self.min_available_clients = min_available_clients
        self.evaluate_fn = evaluate_fn
        self.on_fit_config_fn, self.on_evaluate_config_fn = on_fit_config_fn, on_evaluate_config_fn
        self.accept_failures = accept_failures
        self.initial_parameters = initial_parameters
        self.fit_metrics_aggregation_fn = fit_metrics_aggregation_fn
        self.evaluate_metrics_aggregation_fn = evaluate_metrics_aggregation_fn

    def __repr__(self) -> str:
        return f"{type(self).__name__}(accept_failures={self.accept_failures})"

    def num_fit_clients(self, num_available_clients: int) -> tuple[int, int]:
        """How many are asked, and how many have to be there."""
        return max(int(num_available_clients * self.fraction_fit), self.min_fit_clients), self.min_available_clients

    def num_evaluation_clients(self, num_available_clients: int) -> tuple[int, int]:
        asked = int(num_available_clients * self.fraction_evaluate)
        return max(asked, self.min_evaluate_clients), self.min_available_clients

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        return self.initial_parameters

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        if self.evaluate_fn is None:
            return None
        return self.evaluate_fn(server_round, parameters_to_ndarrays(parameters), {})

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        asked = FitIns(parameters, self.on_fit_config_fn(server_round) if self.on_fit_config_fn else {})
        size, least = self.num_fit_clients(client_manager.num_available())
        return [(client, asked) for client in client_manager.sample(size, least)]

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        if self.fraction_evaluate == 0:
            return []
        asked = EvaluateIns(parameters, self.on_evaluate_config_fn(server_round) if self.on_evaluate_config_fn else {})
        size, least = self.num_evaluation_clients(client_manager.num_available())
        return [(client, asked) for client in client_manager.sample(size, least)]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: Sequence[Any]
    ) -> tuple[Parameters | None, Metrics]:
        if not results or (failures and not self.accept_failures):
            return None, {}
        found = self._next(server_round, mean([(one.parameters.tensors, one.num_examples) for _, one in results]))
        told = [(one.num_examples, one.metrics) for _, one in results]
        metrics = self.fit_metrics_aggregation_fn(told) if self.fit_metrics_aggregation_fn else {}
        return ndarrays_to_parameters(found), metrics

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: Sequence[Any]
    ) -> tuple[float | None, Metrics]:
        if not results or (failures and not self.accept_failures):
            return None, {}
        (loss,) = mean([([np.float64(one.loss)], one.num_examples) for _, one in results])
        told = [(one.num_examples, one.metrics) for _, one in results]
        metrics = self.evaluate_metrics_aggregation_fn(told) if self.evaluate_metrics_aggregation_fn else {}
        return float(loss), metrics

    def _next(self, server_round: int, mean: NDArrays) -> NDArrays:
        """What is agreed, where the clients' mean is this."""
        return mean


class FedProx(FedAvg):
    """FedAvg that sends `proximal_mu` in the configuration of each client, whose own `fit` adds mu / 2 times the
    squared distance to its loss (Li et al., arXiv 1812.06127, algorithm 2).

    >>> FedProx(proximal_mu=0.1).proximal_mu
    0.1
    """

    def __init__(self, *, proximal_mu: float, **options: Any) -> None:
        super().__init__(**options)
        self.proximal_mu = proximal_mu

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        asked = super().configure_fit(server_round, parameters, client_manager)
        more = {"proximal_mu": self.proximal_mu}
        return [(client, FitIns(one.parameters, {**one.config, **more})) for client, one in asked]


def mean(results: Sequence[tuple[Sequence[Any], int]]) -> NDArrays:
    """Of several lists of arrays, weighted by numbers of samples, in float64; in the first one's dtypes.

    >>> mean([([np.array([1.0])], 1), ([np.array([4.0])], 2)])
    [array([3.])]
    """
    total = sum(number for _, number in results)
    if not total:
        raise JobError("nobody has told of a sample, so that there is no mean", found=f"{len(results)} results")
    first = [np.asarray(one) for one in results[0][0]]
    sums = [np.zeros(one.shape, np.float64) for one in first]
    for arrays, number in results:
        for into, one in zip(sums, arrays, strict=True):
            into += np.asarray(one, np.float64) * (number / total)
    return [as_kind(like, one) for like, one in zip(first, sums, strict=True)]


def as_kind(like: Any, found: Any) -> Any:
    return (np.rint(found) if like.dtype.kind in "biu" else found).astype(like.dtype)

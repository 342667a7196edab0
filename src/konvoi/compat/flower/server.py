"""The server's side of a Flower app: rounds by a strategy, over clients that are wherever they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from konvoi.compat.flower.missing import error_of
from konvoi.compat.flower.records import Context
from konvoi.compat.flower.strategies import FedAvg
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
    parameters_to_ndarrays,
)
from konvoi.errors import FleetError, JobError, WorkerError
from konvoi.population.cohorts import generator


@dataclass(frozen=True)
class Asked:
    """Of one client."""

    client: int
    what: Literal["get_parameters", "fit", "evaluate"]
    ndarrays: NDArrays
    config: Metrics


@dataclass(frozen=True)
class Answer:
    """`value`: what the client returns; None where it failed (`error`), and where it has no `evaluate`."""

    client: int
    value: Any = None
    error: WorkerError | None = None


class Clients(Protocol):
    def ask(self, asked: Sequence[Asked], timeout_s: float | None) -> list[Answer]:
        """One for each, in that order. Raises: KonvoiError where they cannot be asked at all."""
        ...


@dataclass
class ServerConfig:
    """`round_timeout`: seconds for what a round asks of its clients; None: they take the time that they take.

    >>> ServerConfig(num_rounds=3).num_rounds
    3
    """

    num_rounds: int = 1
    round_timeout: float | None = None


@dataclass
class ServerAppComponents:
    """What a `server_fn` returns.

    >>> ServerAppComponents(strategy=FedAvg()).strategy
    FedAvg(accept_failures=True)
    """

    server: None = None
    config: ServerConfig | None = None
    strategy: FedAvg | None = None
    client_manager: None = None

    def __post_init__(self) -> None:
        for name in ("server", "client_manager"):
            if getattr(self, name) is not None:
                raise error_of("Server")


class ServerApp:
    """`server_fn(context)` returns `ServerAppComponents`; or they are given here.

    >>> ServerApp(config=ServerConfig(num_rounds=3)).components(Context()).config.num_rounds
    3
    """

    def __init__(
        self,
        server: None = None,
        config: ServerConfig | None = None,
        strategy: FedAvg | None = None,
        client_manager: None = None,
        server_fn: Callable[[Context], ServerAppComponents] | None = None,
    ) -> None:
        if server_fn is not None and (config is not None or strategy is not None):
            raise JobError("a ServerApp has a server_fn, or its parts", found="both")
        if server_fn is None and config is None and strategy is None:  # what follows would be @app.main()
            raise error_of("main")
        given = ServerAppComponents(server, config, strategy, client_manager)
        self.components = server_fn or (lambda context: given)

    def __getattr__(self, name: str) -> Any:
        raise error_of(name)


@dataclass
class History:
    """Figures by round, as Flower's; and beside them `parameters`, which the last round ended with, and `failures`:
    (round, client's partition, what it was) of each client that did not answer as it should.

    >>> History().losses_distributed
    []
    """

    losses_distributed: list[tuple[int, float]] = field(default_factory=list)
    losses_centralized: list[tuple[int, float]] = field(default_factory=list)
    metrics_distributed_fit: dict[str, list[tuple[int, Scalar]]] = field(default_factory=dict)
    metrics_distributed: dict[str, list[tuple[int, Scalar]]] = field(default_factory=dict)
    metrics_centralized: dict[str, list[tuple[int, Scalar]]] = field(default_factory=dict)
    failures: list[tuple[int, int, str]] = field(default_factory=list)
    parameters: NDArrays = field(default_factory=list)


class ClientManager:
    """Who there is, and who takes part: drawn as Konvoi's cohorts are, from `seed` and the number of the draw.

    >>> len(ClientManager(10).sample(3)), ClientManager(10).num_available()
    (3, 10)
    """

    def __init__(self, num_clients: int, seed: int = 0) -> None:
        self.num_clients, self.seed, self.draws = num_clients, seed, 0

    def num_available(self) -> int:
        return self.num_clients

    def all(self) -> dict[str, ClientProxy]:
        return {str(number): ClientProxy(number) for number in range(self.num_clients)}

    def wait_for(self, num_clients: int, timeout: float = 0) -> bool:
        return num_clients <= self.num_clients

    def sample(self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None) -> list[ClientProxy]:
        """Ascending; where there is a criterion, of those that its `select(client)` takes. Raises: FleetError where
        there are fewer, as nobody will come."""
        there = [one for one in self.all().values() if criterion is None or criterion.select(one)]
        if num_clients > len(there) or (min_num_clients or 0) > self.num_clients:
            raise FleetError(
                "the strategy asks for more clients than there are",
                found=f"{num_clients} to take part, {min_num_clients} to be there",
                expected=f"at most {len(there)}",
                hint="min_fit_clients, min_evaluate_clients and min_available_clients are 2 where nothing is said",
            )
        self.draws += 1
        draw = generator(self.seed, "cohort", self.draws)
        return [there[one] for one in sorted(draw.choice(len(there), num_clients, replace=False))]


def rounds(parts: ServerAppComponents, clients: Clients, manager: ClientManager) -> History:
    """In Flower's order: train, evaluate here, evaluate at the clients. Raises: WorkerError for a client that failed,
    where the strategy accepts none, or where all failed to train."""
    strategy, config, history = parts.strategy or FedAvg(), parts.config or ServerConfig(), History()
    timeout_s = config.round_timeout
    parameters = strategy.initialize_parameters(manager)
    if parameters is None:
        (first,) = manager.sample(1)
        (answer,) = clients.ask([Asked(first.node_id, "get_parameters", [], {})], timeout_s)
        if answer.error is not None:
            raise answer.error
        parameters = Parameters(answer.value)
    _centralized(history, 0, strategy, parameters)
    for number in range(1, config.num_rounds + 1):
        fits = strategy.configure_fit(number, parameters, manager)
        if fits:
            trained, failed = _ask(clients, "fit", number, fits, strategy, history, timeout_s)
            results = [(one, FitRes(Parameters(arrays), count, told)) for one, (arrays, count, told) in trained]
            found, metrics = strategy.aggregate_fit(number, results, failed)
            parameters = found or parameters
            _note(history.metrics_distributed_fit, number, metrics)
        _centralized(history, number, strategy, parameters)
        evaluations = strategy.configure_evaluate(number, parameters, manager)
        if evaluations:
            measured, failed = _ask(clients, "evaluate", number, evaluations, strategy, history, timeout_s)
            figures = [(one, EvaluateRes(*value)) for one, value in measured]
            loss, metrics = strategy.aggregate_evaluate(number, figures, failed)
            if loss is not None:
                history.losses_distributed.append((number, loss))
                _note(history.metrics_distributed, number, metrics)
    history.parameters = parameters_to_ndarrays(parameters)
    return history


def _ask(
    clients: Clients,
    what: Literal["fit", "evaluate"],
    number: int,
    asked: Sequence[tuple[ClientProxy, FitIns | EvaluateIns]],
    strategy: FedAvg,
    history: History,
    timeout_s: float | None,
) -> tuple[list[tuple[ClientProxy, Any]], list[WorkerError]]:
    """What came back, and what did not."""
    work = [Asked(client.node_id, what, one.parameters.tensors, dict(one.config)) for client, one in asked]
    answers = clients.ask(work, timeout_s)
    failed = [one for one in answers if one.error is not None]
    for one in failed:
        assert one.error is not None
        one.error.step = number
        if not strategy.accept_failures or (what == "fit" and len(failed) == len(answers)):
            raise one.error
        history.failures.append((number, one.client, one.error.message))
        warnings.warn(f"round {number} goes on without it: {one.error.message}", stacklevel=4)
    proxies = {client.node_id: client for client, _ in asked}
    good = [(proxies[one.client], one.value) for one in answers if one.value is not None]
    return good, [one.error for one in failed if one.error is not None]


def _centralized(history: History, number: int, strategy: FedAvg, parameters: Parameters) -> None:
    found = strategy.evaluate(number, parameters)
    if found is not None:
        history.losses_centralized.append((number, found[0]))
        _note(history.metrics_centralized, number, found[1])


def _note(into: dict[str, list[tuple[int, Scalar]]], number: int, metrics: Metrics) -> None:
    for name, value in metrics.items():
        into.setdefault(name, []).append((number, value))

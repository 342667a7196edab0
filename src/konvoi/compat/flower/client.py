"""A client, and the app that makes it; and what one does in a round, wherever that is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from konvoi.compat.flower.missing import error_of
from konvoi.compat.flower.records import Context
from konvoi.compat.flower.values import Metrics, NDArrays, copies
from konvoi.errors import JobError


class Client:
    """What `to_client` returns, by name, for annotations: a client of messages that somebody has written is refused."""

    def __init_subclass__(cls) -> None:
        if Client in cls.__bases__ and cls.__module__ != __name__:
            raise error_of("Client")


class NumPyClient(Client):
    """A client whose model is a list of arrays. What it can do, it overrides.

    >>> class Mine(NumPyClient):
    ...     def fit(self, parameters, config):
    ...         return [parameters[0] + 1], 10, {}
    >>> fit_once(Mine().to_client(), [np.zeros(2)], {})
    ([array([1., 1.])], 10, {})
    """

    def get_properties(self, config: Metrics) -> Metrics:
        return {}

    def get_parameters(self, config: Metrics) -> NDArrays:
        raise _lacks(self, "get_parameters")

    def fit(self, parameters: NDArrays, config: Metrics) -> tuple[NDArrays, int, Metrics]:
        raise _lacks(self, "fit")

    def evaluate(self, parameters: NDArrays, config: Metrics) -> tuple[float, int, Metrics]:
        raise _lacks(self, "evaluate")

    def to_client(self) -> NumPyClient:
        return self


class ClientApp:
    """What makes a client of a context, in whichever process it is to run. Anew in every round: what it is to keep, it
    puts into `context.state`.

    >>> ClientApp(client_fn=lambda context: NumPyClient().to_client()).client(Context()).get_properties({})
    {}
    """

    def __init__(self, client_fn: Callable[[Context], Client] | None = None, mods: Sequence[Any] | None = None) -> None:
        if mods:
            raise error_of("mods")
        if client_fn is None:  # what follows would be @app.train(), of messages
            raise error_of("Message")
        self.client_fn = client_fn

    def client(self, context: Context) -> NumPyClient:
        """Raises: JobError where `client_fn` has made something else."""
        client = self.client_fn(context)
        if not isinstance(client, NumPyClient):
            found = f"{type(client).__module__}.{type(client).__qualname__}"
            expected = "a NumPyClient of konvoi.compat.flower: the line that imports it changes, too"
            raise JobError("client_fn made no client", found=found, expected=expected)
        return client

    def __getattr__(self, name: str) -> Any:
        raise error_of(name)


def fit_once(client: NumPyClient, ndarrays: NDArrays, config: Metrics) -> tuple[NDArrays, int, Metrics]:
    """One client's part of a round: `(arrays, number of samples, metrics)`, all of them copies, so that what the client
    does next changes nothing.

    Raises: JobError where it returns something else, or arrays of other shapes than it was sent, or not finite.
    """
    found = client.fit(copies(ndarrays), dict(config))
    try:
        arrays, num_examples, metrics = found
        arrays, num_examples, metrics = arrays_of(arrays), operator.index(num_examples), dict(metrics)
    except (TypeError, ValueError) as error:
        expected = "a list of arrays, the number of samples, a dict of metrics"
        told = f"{_kinds(found)} ({error})"
        raise JobError("fit returned something else", found=told, expected=expected) from error
    shapes, sent = [one.shape for one in arrays], [one.shape for one in ndarrays]
    if sent and shapes != sent:
        raise JobError("fit returned arrays of other shapes", found=shapes, expected=sent)
    if not all(np.isfinite(one).all() for one in arrays):
        raise JobError("fit returned arrays that are not finite")
    if num_examples < 0:
        raise JobError("fit returned a number of samples below 0", found=num_examples)
    return arrays, num_examples, metrics


def evaluate_once(client: NumPyClient, ndarrays: NDArrays, config: Metrics) -> tuple[float, int, Metrics]:
    """What a client says of these arrays: `(loss, number of samples, metrics)`. Raises: JobError, as `fit_once`.

    >>> class Mine(NumPyClient):
    ...     def evaluate(self, parameters, config):
    ...         return float(parameters[0].sum()), 10, {"accuracy": 0.5}
    >>> evaluate_once(Mine(), [np.ones(2)], {})
    (2.0, 10, {'accuracy': 0.5})
    """
    found = client.evaluate(copies(ndarrays), dict(config))
    try:
        loss, num_examples, metrics = found
        return float(loss), operator.index(num_examples), dict(metrics)
    except (TypeError, ValueError) as error:
        expected = "a loss, the number of samples, a dict of metrics"
        told = f"{_kinds(found)} ({error})"
        raise JobError("evaluate returned something else", found=told, expected=expected) from error


def arrays_of(values: Any) -> NDArrays:
    """Copies. Raises: TypeError for what is no list of arrays of numbers."""
    arrays = copies(values)
    if kinds := [one.dtype for one in arrays if one.dtype.kind not in "biuf"]:
        raise TypeError(f"arrays of {kinds[0]}")
    return arrays


def _lacks(client: NumPyClient, name: str) -> JobError:
    return JobError(f"the client has no {name}", found=type(client).__qualname__, expected=f"a method {name}")


def _kinds(found: Any) -> str:
    return ", ".join(type(one).__name__ for one in found) if isinstance(found, tuple) else type(found).__name__

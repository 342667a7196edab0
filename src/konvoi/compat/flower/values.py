"""What a strategy, a server and clients pass to each other, by Flower's names for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scalar: TypeAlias = bool | bytes | float | int | str
Metrics: TypeAlias = dict[str, Scalar]
NDArrays: TypeAlias = list[NDArray[Any]]


def copies(arrays: Iterable[Any]) -> NDArrays:
    """As numpy's, also of torch tensors."""
    return [np.array(np.asarray(one)) for one in arrays]


@dataclass
class Parameters:
    """A model's arrays. Unlike Flower's, `tensors` are the arrays themselves, and not their bytes.

    >>> Parameters([np.zeros(2)]).tensor_type
    'numpy.ndarray'
    """

    tensors: NDArrays
    tensor_type: str = "numpy.ndarray"


def ndarrays_to_parameters(ndarrays: Iterable[Any]) -> Parameters:
    """A copy of the arrays.

    >>> ndarrays_to_parameters([np.zeros(2)])
    Parameters(tensors=[array([0., 0.])], tensor_type='numpy.ndarray')
    """
    return Parameters(copies(ndarrays))


def parameters_to_ndarrays(parameters: Parameters) -> NDArrays:
    """A copy of the arrays, which may be written to.

    >>> parameters_to_ndarrays(ndarrays_to_parameters([np.zeros(2)]))
    [array([0., 0.])]
    """
    return copies(parameters.tensors)


@dataclass(frozen=True)
class ClientProxy:
    """A client, as a strategy sees it. `cid` is its partition's number, as text.

    >>> ClientProxy(3).cid
    '3'
    """

    node_id: int

    @property
    def cid(self) -> str:
        return str(self.node_id)


@dataclass
class FitIns:
    """What a client is to train from, and how.

    >>> FitIns(Parameters([]), {"lr": 0.1}).config
    {'lr': 0.1}
    """

    parameters: Parameters
    config: Metrics = field(default_factory=dict)


@dataclass
class EvaluateIns:
    """What a client is to evaluate, and how.

    >>> EvaluateIns(Parameters([])).config
    {}
    """

    parameters: Parameters
    config: Metrics = field(default_factory=dict)


@dataclass
class FitRes:
    """What a client has trained.

    >>> FitRes(Parameters([]), num_examples=8).metrics
    {}
    """

    parameters: Parameters
    num_examples: int
    metrics: Metrics = field(default_factory=dict)


@dataclass
class EvaluateRes:
    """What a client has evaluated. `loss` is a mean over `num_examples`.

    >>> EvaluateRes(loss=0.5, num_examples=8).metrics
    {}
    """

    loss: float
    num_examples: int
    metrics: Metrics = field(default_factory=dict)

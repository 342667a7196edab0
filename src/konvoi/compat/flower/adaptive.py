"""Strategies whose mean move goes through Konvoi's outer step, by Flower's names and arguments."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from konvoi.compat.flower.strategies import FedAvg, as_kind
from konvoi.compat.flower.values import ClientProxy, FitIns, NDArrays, Parameters, parameters_to_ndarrays
from konvoi.errors import JobError
from konvoi.plan.convoy import Convoy
from konvoi.plan.local import Local

if TYPE_CHECKING:
    from konvoi.compat.flower.server import ClientManager
    from konvoi.plan.exchange.outer import OuterStep


class FedOpt(FedAvg):
    """FedAvg whose mean move is a gradient to an outer step, `plan` (Reddi et al., arXiv 2003.00295, algorithm 2).

    Its second moment begins with zeros, as in Flower; in the paper, and in `kv.fedadam`, with tau squared.

    >>> FedAdam().plan.outer
    'adam'
    """

    def __init__(self, plan: Convoy, *, eta_l: float = 0.1, **options: Any) -> None:
        """`eta_l`: the clients' learning rate, for whoever asks; it changes nothing here."""
        super().__init__(**options)
        first: Parameters | None = self.initial_parameters
        self.plan, self.eta_l = plan, eta_l
        self.current_weights = parameters_to_ndarrays(first) if first else None
        self.outer: OuterStep | None = None

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        if self.current_weights is None:
            self.current_weights = parameters_to_ndarrays(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def _next(self, server_round: int, mean: NDArrays) -> NDArrays:
        import torch

        from konvoi.plan.exchange.outer import OuterStep

        if self.current_weights is None:
            hint = "initial_parameters=ndarrays_to_parameters(...)"
            raise JobError(f"{type(self).__name__} moves on from parameters, and has none", hint=hint)
        agreed, there = _flat(self.current_weights), _flat(mean)
        move = torch.from_numpy(agreed - there)
        if self.outer is None:
            self.outer = OuterStep(self.plan, move)
            if "second" in self.outer.state:
                self.outer.state["second"].zero_()
        self.outer.plan = dataclasses.replace(self.plan, outer_lr=self._lr(server_round))
        self.outer.take(torch.from_numpy(agreed), self._step(move))
        self.current_weights = _like(self.current_weights, agreed)
        return self.current_weights

    def _lr(self, server_round: int) -> float:
        return self.plan.outer_lr

    def _step(self, move: Any) -> Any:
        return move


class FedAdam(FedOpt):
    """With Adam (arXiv 2003.00295, algorithm 2), whose bias is corrected as in Flower: by exponents of round + 1.

    >>> FedAdam(eta=0.01).plan.outer_lr
    0.01
    """

    def __init__(
        self,
        *,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(_plan("adam", eta, beta_1, beta_2, tau), **options)

    def _lr(self, server_round: int) -> float:
        plan, power = self.plan, server_round + 1.0
        corrected: float = math.sqrt(1 - plan.outer_beta2**power) / (1 - plan.outer_momentum**power)
        return plan.outer_lr * corrected


class FedYogi(FedOpt):
    """With Yogi's second moment (arXiv 2003.00295, algorithm 2).

    >>> FedYogi().plan.outer_eps
    0.001
    """

    def __init__(
        self,
        *,
        eta: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(_plan("yogi", eta, beta_1, beta_2, tau), **options)


class FedAdagrad(FedOpt):
    """With the sum of squares of all rounds (arXiv 2003.00295, algorithm 2).

    >>> FedAdagrad().plan.outer
    'adagrad'
    """

    def __init__(self, *, eta: float = 0.1, tau: float = 1e-9, **options: Any) -> None:
        super().__init__(_plan("adagrad", eta, 0.0, 0.0, tau), **options)


class FedAvgM(FedOpt):
    """With momentum that is not Nesterov's (Hsu et al., arXiv 1909.06335; `kv.fedavg(outer_momentum=)` has Nesterov's).

    >>> FedAvgM(server_momentum=0.9).server_momentum
    0.9
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(_plan("sgd", server_learning_rate), **options)
        self.server_learning_rate, self.server_momentum = server_learning_rate, server_momentum
        self.momentum: Any = 0.0

    def _step(self, move: Any) -> Any:
        self.momentum = self.server_momentum * self.momentum + move
        return self.momentum


def _plan(outer: str, lr: float, momentum: float = 0.0, beta2: float = 0.99, eps: float = 1e-3) -> Convoy:
    names = {"outer_lr": lr, "outer_momentum": momentum, "outer_beta2": beta2, "outer_eps": eps}
    return Convoy(rounds=1, local=Local(), outer=outer, **names)  # type: ignore[arg-type]


def _flat(arrays: NDArrays) -> Any:
    """float64, (numbers,)."""
    return np.concatenate([np.asarray(one, np.float64).reshape(-1) for one in arrays])


def _like(arrays: NDArrays, flat: Any) -> NDArrays:
    pieces = np.split(flat, np.cumsum([one.size for one in arrays])[:-1])
    return [as_kind(one, piece.reshape(one.shape)) for one, piece in zip(arrays, pieces, strict=True)]

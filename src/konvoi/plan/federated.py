"""The field's names for federated learning: members with data of their own, each a few values with its paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from konvoi.plan.convoy import Convoy
from konvoi.plan.local import Local


def fedavg(
    *,
    rounds: int = 100,
    cohort: int = 0,
    epochs: float = 1.0,
    steps: int = 0,
    personal: tuple[str, ...] = (),
    equal: bool = False,
    finetune: float = 0.0,
    **other: Any,
) -> Convoy:
    """Each of a round's clients trains on its own data; the mean of their weights, by samples, is the next round's
    beginning (McMahan et al., arXiv 1602.05629, algorithm 1).

    - `rounds`, and `cohort`: the clients of each, drawn anew (0: all).
    - `epochs`, or `steps`: what a client trains in a round, in batches of the job's `global_batch`.
    - `personal`: patterns of parameter names that stay at each client (FedPer, arXiv 1912.00818).
    - `equal`: clients count alike, whatever they have.
    - `finetune`: epochs for which each client trains on by itself behind the last round, to tell what that would bring
      (arXiv 1909.12488, section 3).

    The job's schedule runs over the rounds. What else a convoy can be told, e.g. `outer_lr` and `outer_momentum`
    (FedAvgM, arXiv 1909.06335), goes in `other`.

    >>> fedavg(rounds=50, cohort=10).local
    Local(epochs=1.0, steps=0, proximal=0.0, controls=False, personal=(), equal=False, finetune=0.0)
    """
    local = other.pop("local", None) or Local(epochs=epochs, steps=steps, personal=personal, equal=equal)
    local = replace(local, finetune=finetune) if finetune else local
    return Convoy(**{"rounds": rounds, "cohort": cohort, "local": local, **other})


def fedprox(
    *, proximal: float = 0.01, rounds: int = 100, cohort: int = 0, epochs: float = 1.0, steps: int = 0, **other: Any
) -> Convoy:
    """FedAvg whose clients are pulled back to where they began: `proximal` / 2 times the squared distance is added to
    their loss (Li et al., arXiv 1812.06127, algorithm 2).

    >>> fedprox(proximal=0.1).local.proximal
    0.1
    """
    local = Local(epochs=epochs, steps=steps, proximal=proximal)
    return fedavg(rounds=rounds, cohort=cohort, local=local, **other)


def scaffold(
    *, rounds: int = 100, cohort: int = 0, epochs: float = 1.0, steps: int = 0, outer_lr: float = 1.0, **other: Any
) -> Convoy:
    """Each client's steps are corrected by how its gradients differ from all clients' (Karimireddy et al., arXiv
    1910.06378, algorithm 1, option II). Moves are averaged over the cohort, all alike; controls over all clients. With
    `optimizers.sgd(momentum=0)` inside.

    >>> scaffold().local.controls
    True
    """
    local = Local(epochs=epochs, steps=steps, controls=True, equal=True)
    return fedavg(rounds=rounds, cohort=cohort, local=local, outer_lr=outer_lr, **other)


def fedadam(*, outer_lr: float = 0.01, outer_momentum: float = 0.9, **other: Any) -> Convoy:
    """FedAvg whose mean move is a gradient to Adam (Reddi et al., arXiv 2003.00295, algorithm 2; no bias correction).
    `outer_eps` is the paper's tau.

    >>> fedadam().outer
    'adam'
    """
    return fedavg(**{"outer": "adam", "outer_lr": outer_lr, "outer_momentum": outer_momentum, **other})


def fedyogi(*, outer_lr: float = 0.01, outer_momentum: float = 0.9, **other: Any) -> Convoy:
    """As `fedadam`, with Yogi's second moment, which grows no faster than its own sign (arXiv 2003.00295, algorithm 2).

    >>> fedyogi().outer
    'yogi'
    """
    return fedavg(**{"outer": "yogi", "outer_lr": outer_lr, "outer_momentum": outer_momentum, **other})


def fedadagrad(*, outer_lr: float = 0.1, outer_momentum: float = 0.0, **other: Any) -> Convoy:
    """As `fedadam`, with the sum of squares of all rounds (arXiv 2003.00295, algorithm 2).

    >>> fedadagrad().outer
    'adagrad'
    """
    return fedavg(**{"outer": "adagrad", "outer_lr": outer_lr, "outer_momentum": outer_momentum, **other})


def fedbuff(*, buffer: int = 10, cohort: int = 100, damping: float = 0.5, **other: Any) -> Convoy:
    """`cohort` clients train at any time, and nobody waits: `buffer` updates make a round, each damped by the rounds
    that were made since it began (Nguyen et al., arXiv 2106.06639, algorithm 1; with their 1 / sqrt(1 + staleness)).

    >>> fedbuff(buffer=5).at_once
    5
    """
    return fedavg(**{"at_once": buffer, "cohort": cohort, "damping": damping, **other})

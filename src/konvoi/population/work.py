"""What clients do in a round, before it is said how: one by one, or together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from konvoi.job.data.positions import Ints


@dataclass(frozen=True)
class Work:
    """Some clients' work in a round: each with weights of its own, stacked along the first dim, in which it ends.

    `weights`: by parameter, (clients, ...), written over; `proximal` pulls back to what they are at first. `batches`:
    of each client the samples of each of its steps. `corrections`: added to each step's gradient, by parameter
    (clients, ...).
    """

    round: int
    weights: list[Tensor]
    batches: Sequence[Sequence[Ints]]
    proximal: float = 0.0
    corrections: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Learnt:
    """(clients,) each: over all of a client's steps, the sum of its losses and the weight that it runs over; and the
    sum of its learning rates."""

    losses: Tensor
    weights: Tensor
    rates: Tensor


class Way(Protocol):
    """How clients are trained."""

    def train(self, work: Work) -> Learnt: ...

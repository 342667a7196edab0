"""Rounds where nobody waits: whose updates make each, and the weights that these began with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from konvoi.fleet.simulated import Simulated
from konvoi.plan.convoy import Convoy
from konvoi.population.cohorts import Arrival, arrivals


class Buffered:
    """`start`: the round behind which it goes on."""

    def __init__(self, plan: Convoy, fleet: Simulated, num_steps: Sequence[int], agreed: Tensor, start: int) -> None:
        self._arrivals, oldest = arrivals(plan, fleet, num_steps), 0
        for _ in range(start):
            _, _, oldest = next(self._arrivals)
        # Those from before are read from the checkpoint. What is no number till then makes no update that counts.
        self.versions = {number: torch.full_like(agreed, math.nan) for number in range(oldest, start)}
        self.agree(start, agreed)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it: all but the newest weights, which are the model's. Shares memory."""
        newest = max(self.versions)
        return {f"versions.{number}": one for number, one in self.versions.items() if number < newest}

    def next(self) -> tuple[list[Arrival], float]:
        """The updates of the next round, and the clock at its end."""
        here, seconds, oldest = next(self._arrivals)
        self.versions = {number: one for number, one in self.versions.items() if number >= oldest}
        return here, seconds

    def agree(self, round: int, agreed: Tensor) -> None:
        self.versions[round] = agreed.clone()

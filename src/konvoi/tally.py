"""What an island has done since the last of its updates that was counted; and what agreeing costs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What an update is made of, beside how far the weights have moved."""

    samples: int = 0
    weight: float = 0.0
    gradients: list[Tensor] | None = None  # their sum

    def mean(self) -> list[Tensor] | None:
        """Of the gradients."""
        return None if self.gradients is None else [g / (self.weight or 1.0) for g in self.gradients]


class Tally:
    """Samples, weight and, where those are sent, gradients. What a snapshot has taken is tentative until its round is
    decided."""

    def __init__(self) -> None:
        self.samples, self.weight = 0, 0.0  # what was taken counts among them
        self.usual_weight = 1.0  # of an update; of one at the end, too, that is of no steps of its own
        self._gradients: list[Tensor] | None = None
        self._taken = Work()

    def add(self, samples: int, weight: float, gradients: Sequence[Tensor] = ()) -> None:
        self.samples += samples
        self.weight += weight
        if gradients and self._gradients is None:
            self._gradients = [g.clone() for g in gradients]
        elif gradients:
            torch._foreach_add_(self._gradients, list(gradients))  # type: ignore[arg-type]

    def take(self) -> Work:
        """For a snapshot."""
        self._taken = Work(self.samples, self.weight, self._gradients)
        self._gradients = None
        self.usual_weight = self.weight if self.samples else self.usual_weight
        return self._taken

    def decided(self, *, was_counted: bool, is_from_here: bool) -> None:
        """What was taken is in the sum; or goes into the next; or something from before a crash is in, which was made
        of the same samples."""
        if is_from_here:
            self.samples, self.weight = self.samples - self._taken.samples, self.weight - self._taken.weight
        elif was_counted:
            self.drop()
        elif self._taken.gradients is not None:
            self.add(0, 0.0, self._taken.gradients)
        self._taken = Work()

    def drop(self) -> None:
        """All of it is in, or is nobody's."""
        self.samples, self.weight, self._gradients, self._taken = 0, 0.0, None, Work()


class Stopwatch:
    """How long steps take here, from reading their data to the weights' move, and the last exchange, from its snapshot
    to the sum."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step_at = self._step_s = 0.0
        self._exchange_at: float | None = None
        self._exchange_s = 0.0

    def step_begins(self) -> None:
        self._step_at = self._clock()

    def step_ends(self) -> None:
        seconds = self._clock() - self._step_at
        self._step_s = 0.8 * self._step_s + 0.2 * seconds if self._step_s else seconds

    def exchange_begins(self) -> None:
        self._exchange_at = self._clock()

    def exchange_ends(self) -> None:
        if self._exchange_at is not None:
            self._exchange_s, self._exchange_at = self._clock() - self._exchange_at, None

    @property
    def cost(self) -> float:
        """Of the last exchange, in steps; 0 before there was one."""
        return self._exchange_s / self._step_s if self._step_s else 0.0

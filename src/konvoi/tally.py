"""What an island has done since the last of its updates that was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What an update is made of, beside how far the weights have moved."""

    samples: int = 0
    weight: float = 0.0
    gradients: list[Tensor] | None = None  # their sum


class Tally:
    """Samples, weight and, where those are sent, gradients. What a snapshot has taken is tentative until its round is
    decided."""

    def __init__(self) -> None:
        self.samples, self.weight = 0, 0.0  # what was taken counts among them
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
        return self._taken

    def counted(self) -> None:
        """What was taken is in."""
        self.samples -= self._taken.samples
        self.weight -= self._taken.weight
        self._taken = Work()

    def not_counted(self) -> None:
        """What was taken goes into the next update."""
        if self._taken.gradients is not None:
            self.add(0, 0.0, self._taken.gradients)
        self._taken = Work()

    def drop(self) -> None:
        """All of it is in, or is nobody's."""
        self.samples, self.weight, self._gradients, self._taken = 0, 0.0, None, Work()

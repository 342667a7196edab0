"""What a member of a federation does for a round with data of its own, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from konvoi.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Local:
    """A client's share of a round. It begins with the agreed weights and a fresh optimizer, and trains on its own
    data in batches of the job's `global_batch`, or of all it has where that is less.

    - `epochs`: passes over its data; the last batch may be smaller. Or `steps` of full batches, where that is not 0.
    - `proximal`: what pulls it back to where it began: mu / 2 times the squared distance is added to the loss (FedProx,
      arXiv 1812.06127, section 3.2).
    - `controls`: correct each step by how this client's gradients differ from all clients' (SCAFFOLD, arXiv 1910.06378,
      option II). With plain SGD inside.
    - `personal`: patterns of parameter names that stay at each client and are never sent (FedPer, arXiv 1912.00818).
    - `equal`: every client counts alike, instead of by its samples.
    - `finetune`: behind the last round each client trains on for so many epochs by itself, without `proximal` and
      `controls`, at the schedule's highest learning rate (arXiv 1909.12488, section 3). Nothing of it is agreed on.

    >>> Local(epochs=2).sizes(num_samples=20, batch=16)
    (16, 16, 8)
    >>> Local(steps=2).sizes(num_samples=20, batch=32)
    (20, 20)
    """

    epochs: float = 1.0
    steps: int = 0
    proximal: float = 0.0
    controls: bool = False
    personal: tuple[str, ...] = ()
    equal: bool = False
    finetune: float = 0.0

    def __post_init__(self) -> None:
        if not self.steps and not self.epochs > 0:
            raise PlanError("a client trains for some epochs, or some steps", found=f"epochs={self.epochs}, steps=0")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise PlanError("a client's steps are a number from 0", found=repr(self.steps))
        if not 0 <= self.proximal < math.inf:
            raise PlanError("proximal is at least 0", found=repr(self.proximal))
        if not 0 <= self.finetune < math.inf:
            raise PlanError("finetune is a number of epochs, from 0", found=repr(self.finetune))
        if isinstance(self.personal, str):
            hint = f"personal=({self.personal!r},)"
            raise PlanError("personal is several patterns of parameter names", found=repr(self.personal), hint=hint)

    def sizes(self, num_samples: int, batch: int) -> tuple[int, ...]:
        """The samples of each step of a client that has so many."""
        batch = min(batch, num_samples)
        if self.steps:
            return (batch,) * self.steps
        total = max(1, round(self.epochs * num_samples))
        full, rest = divmod(total, batch)
        return (batch,) * full + ((rest,) if rest else ())

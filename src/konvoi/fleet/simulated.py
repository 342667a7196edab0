"""Clients that are simulated on the devices of this computer: who they are, and how reliable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from konvoi.errors import FleetError, did_you_mean

if TYPE_CHECKING:
    from konvoi.values import Division

WAYS = ("measured", "together", "one by one")


@dataclass(frozen=True)
class Simulated:
    """Made by `kv.fleet.simulated`."""

    division: Division
    num_workers: int | None = None
    device: str | None = None
    way: Literal["measured", "together", "one by one"] = "measured"
    at_once: int = 0
    memory: int = 1 << 30
    available: float = 1.0
    dropout: float = 0.0
    spread: float = 0.0
    step_s: float = 1.0
    seed: int = 0
    holdout: float = 0.0
    keep_finetuned: bool = False

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise FleetError("unknown way", found=repr(self.way), hint=did_you_mean(str(self.way), WAYS))
        for name, low, high in (("available", 0, 1), ("dropout", 0, 1), ("spread", 0, 10)):
            if not low <= getattr(self, name) <= high:
                raise FleetError(f"{name} lies between {low} and {high}", found=repr(getattr(self, name)))
        for name in ("at_once", "memory"):
            if not getattr(self, name) >= 0:
                raise FleetError(f"{name} is at least 0", found=repr(getattr(self, name)))
        if not 0 <= self.holdout < 1:
            raise FleetError(
                "holdout is a share of a client's samples", found=self.holdout, expected="0 <= holdout < 1"
            )
        if not self.step_s > 0:
            raise FleetError("step_s is above 0", found=repr(self.step_s))

    def on(self, num_workers: int | None, device: str | None) -> Simulated:
        """The same clients, on other devices where these are given."""
        return replace(self, num_workers=num_workers or self.num_workers, device=device or self.device)

    def describe(self) -> dict[str, Any]:
        """For the run's record."""
        world = {name: getattr(self, name) for name in ("available", "dropout", "spread", "seed", "holdout")}
        return {**self.division.describe(), **{name: value for name, value in world.items() if value}}


def simulated(
    division: Division,
    num_workers: int | None = None,
    *,
    device: str | None = None,
    way: Literal["measured", "together", "one by one"] = "measured",
    at_once: int = 0,
    memory: int = 1 << 30,
    available: float = 1.0,
    dropout: float = 0.0,
    spread: float = 0.0,
    step_s: float = 1.0,
    seed: int = 0,
    holdout: float = 0.0,
    keep_finetuned: bool = False,
) -> Simulated:
    """The clients among whom `division` divides the job's data (`kv.data.dirichlet(clients=20, alpha=0.3)`).

    - `num_workers`: processes that they are spread over; by default one for each core, or accelerator.
    - `way`: train many clients "together", as one batched computation, or "one by one"; "measured" tries a step of
      both and takes the faster. What cannot be batched is trained one by one, and the run says why.
    - `at_once`: clients that are trained together, at most; 0: as many as help.
    - `memory`: bytes that each process may take for samples, where all of them go into half of it, and for clients that
      are trained together: as many as fit, by what a step of two takes.
    - `available`: the chance that a client is there when a round's cohort is drawn; `dropout`: that one of the cohort
      is never heard of again.
    - `spread`: how unequal clients are: a client's step takes `step_s` seconds times exp(spread * N(0, 1)), of a clock
      that exists for the plan's `deadline_s` alone.
    - `seed`: of all this; what is learned has the job's.
    - `holdout`: the share of its own samples on which each client evaluates and does not train: of who has two, at
      least one.
    - `keep_finetuned`: what each client has behind the plan's `finetune` is kept, a safetensors file for each in
      the run's `clients/finetuned`, for `run.model(client=3)`.

    >>> from konvoi.job.data.partition import iid
    >>> simulated(iid(clients=3), dropout=0.1).describe()["dropout"]
    0.1
    """
    return Simulated(
        division,
        num_workers,
        device,
        way,
        at_once,
        memory,
        available,
        dropout,
        spread,
        step_s,
        seed,
        holdout,
        keep_finetuned,
    )

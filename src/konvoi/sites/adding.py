"""What a decision comes to: the moves of its updates added up, and the outer step. The server knows nothing else of a
model than how many numbers it has."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.outer import OuterStep
from konvoi.plan.sync.serving import Update
from konvoi.population.judging import spread
from konvoi.sites.protocol import VALID

SAMPLES = f"{VALID}samples"


@dataclass(frozen=True)
class Learnt:
    """An update that counts."""

    move: NDArray[np.float32]  # agreed weights minus the site's
    control: NDArray[np.float32]  # of as many numbers, or none
    weight: float
    staleness: int = 0


class Agreed:
    """The agreed weights, as one row of float32, with the controls behind them where a plan has such; and the state of
    the outer step."""

    def __init__(self, plan: Convoy, weights: NDArray[np.float32], outer: bytes | None = None) -> None:
        assert plan.local is not None
        self.plan, self.has_controls = plan, plan.local.controls
        self.row = torch.from_numpy(weights.astype(np.float32))
        half = len(self.row) // 2 if self.has_controls else len(self.row)
        self.weights, self.controls = self.row[:half], self.row[half:]
        self.outer = OuterStep(plan, self.weights)
        if outer is not None:
            self.outer.state = torch.load(io.BytesIO(outer), weights_only=True)

    def take(self, updates: Sequence[Learnt], members: int) -> None:
        """The outer step along their mean; `members`: of the whole federation, over whom controls are averaged."""
        assert self.plan.local is not None
        weights = [1.0 if self.plan.local.equal else one.weight for one in updates]
        total = sum(weights)
        mean = torch.zeros_like(self.weights, dtype=torch.float64)
        for one, weight in zip(updates, weights, strict=True):
            share = weight / total if total else 1 / len(updates)
            mean.add_(torch.from_numpy(one.move), alpha=share * (1 + one.staleness) ** -self.plan.damping)
        self.outer.take(self.weights, mean.to(self.weights))
        if self.has_controls:
            change = torch.zeros_like(self.controls, dtype=torch.float64)
            for one in updates:
                change.add_(torch.from_numpy(one.control))
            self.controls.add_((change / max(members, 1)).to(self.controls))

    def as_bytes(self) -> tuple[bytes, bytes]:
        """The weights, and the outer step's state."""
        state = io.BytesIO()
        torch.save(self.outer.state, state)
        return self.row.numpy().astype("<f4").tobytes(), state.getvalue()


def mean_of(figures: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Of a round's updates, where all have told."""
    found, kept = {}, [one.get(SAMPLES, 0.0) for one in figures]
    for name in figures[0] if figures else ():
        by = kept if name.startswith(VALID) else weights
        is_mean = name == "loss" or (name.startswith(VALID) and name != SAMPLES)
        if is_mean and all(name in one for one in figures) and sum(by) > 0:
            found[name] = sum(one[name] * weight for one, weight in zip(figures, by, strict=True)) / sum(by)
    return found


def told_by(updates: Sequence[Update], figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What stands beside a decision, for people: means, and, of what was told of samples that sites keep for
    evaluation, each site's and how unlike these are. `figures`: by an update's hash."""
    by_site = {one.site: figures.get(one.hash, {}) for one in updates}
    told: dict[str, Any] = {**mean_of([*by_site.values()], [one.weight for one in updates])}
    if "valid_loss" in told:
        judged = {site: found for site, found in by_site.items() if found[SAMPLES] > 0}
        told["valid_by_site"] = {site: found["valid_loss"] for site, found in judged.items()}
        names = [name for name in told if name.startswith(VALID) and name in next(iter(judged.values()))]
        told["spread"] = spread([{"weight": 1.0, **{name: one[name] for name in names}} for one in judged.values()])
    if claimed := {site: found["claimed"] for site, found in by_site.items() if "claimed" in found}:
        told["claimed_too_many_samples"] = claimed
    return told


class Best:
    """Which weights sites have judged best, on samples that they keep for evaluation, and how many rounds ago."""

    def __init__(self) -> None:
        self.base, self.loss, self.worse = "", float("inf"), 0

    def judge(self, base: str, told: Mapping[str, Any]) -> None:
        """What is told in a round is of `base`, the weights that it began with."""
        self.worse += 1
        if told.get("valid_loss", self.loss) < self.loss:
            self.base, self.loss, self.worse = base, told["valid_loss"], 0

"""Gossip whose islands take their steps in turn, in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konvoi.errors import DataError, PlanError
from konvoi.fleet.wire.memory import Hub
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.job.data.loader import Leased
from konvoi.job.job import Prepared
from konvoi.learner import Learner
from konvoi.pairing import LivePairs
from konvoi.plan.convoy import Convoy
from konvoi.plan.island import Island
from konvoi.plan.split.parts import Parts
from konvoi.values import Source


@dataclass
class Gossiping:
    """One island: its model, its optimizer, and whom it is averaging with."""

    island: LiveIsland
    parts: Parts
    learner: Learner
    pairs: LivePairs
    batches: Leased
    losses: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.learner.parameters.items()}


class GossipSimulation:
    """`num_islands` single workers. Each takes its share of the job's global batch at every step."""

    def __init__(self, prepared: Prepared, plan: Convoy, num_islands: int, *, island: Island | None = None) -> None:
        job, source = prepared.job, prepared.splits.train
        if plan.partners != "pairs":
            raise PlanError("this is no gossip", found=plan.describe(), hint="kv.gossip(every=8)")
        if not isinstance(source, Source):
            raise DataError("islands read positions of the data, and a stream has none", found=type(source).__name__)
        self.prepared, self.hub, self.batch = prepared, Hub(), job.global_batch // num_islands
        names = tuple(f"island-{number}" for number in range(num_islands))
        self.islands: list[Gossiping] = []
        for name in names:
            live = LiveIsland(Place(0, 1), island or Island(), torch.device("cpu"), None)
            parts = live.split(job.model, job.objective, seed=job.seed, freeze=job.freeze)
            learner = Learner(job, parts, prepared.num_steps)
            trained = {n: p for n, p in learner.parameters.items() if p.requires_grad}
            one = LivePairs(name, names, plan, trained, self.hub)
            batches = Leased(source, seed=job.seed, collate=job.collate)
            self.islands.append(Gossiping(live, parts, learner, one, batches))

    def run(self, num_steps: int | None = None) -> Iterator[int]:
        """Yields each step's number when all islands have taken it."""
        for step in range(1, (num_steps or self.prepared.num_steps) + 1):
            for number, one in enumerate(self.islands):
                while not one.pairs.catch_up():
                    self._settle()
                self._take_step(number, one, step)
            self._settle()
            yield step

    def _settle(self) -> None:
        self.hub.run(0.1)
        for one in self.islands:
            one.pairs.catch_up()

    def _take_step(self, number: int, one: Gossiping, step: int) -> None:
        job, start = self.prepared.job, (step - 1) * self.prepared.job.global_batch + number * self.batch
        for module in one.parts.modules:
            module.train()
        micro = one.batches.read([(start, start + self.batch)])
        one.learner.lr(step)
        gradient = one.island.forward_backward(one.parts, [one.island.to_device(item) for item in micro])
        one.losses.append(gradient.loss)
        one.island.clip(one.parts, gradient, job.clip_grad_norm)
        if one.island.is_finite(gradient):
            one.learner.step()
        one.pairs.stepped()

    def settle(self) -> None:
        """End what is under way, and begin nothing more."""
        for one in self.islands:
            one.pairs.leave()
        while not all(one.pairs.is_settled() for one in self.islands):
            self._settle()

    def consensus(self) -> Mapping[str, Tensor]:
        """The mean of all islands' weights: what is to be saved."""
        names = self.islands[0].parameters
        return {name: torch.stack([one.parameters[name] for one in self.islands]).mean(0) for name in names}

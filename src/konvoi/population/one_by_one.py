"""Clients are trained one after the other, by the island that every other plan trains with: the slow twin."""

from __future__ import annotations

import torch
from torch import Tensor

from konvoi.island import LiveIsland
from konvoi.job.job import Job
from konvoi.learner import Learner
from konvoi.plan.split.parts import Parts
from konvoi.population.reading import Read
from konvoi.population.work import Learnt, Work
from konvoi.values import MicroBatch


class OneByOne:
    """Use one for one model."""

    def __init__(self, island: LiveIsland, parts: Parts, job: Job, num_rounds: int, read: Read) -> None:
        self.island, self.parts, self.job, self.num_rounds, self.read = island, parts, job, num_rounds, read

    def train(self, work: Work) -> Learnt:
        rows = [self._train_one(work, number) for number in range(len(work.batches))]
        return Learnt(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))

    def _train_one(self, work: Work, number: int) -> tuple[float, float, float]:
        learner = Learner(self.job, self.parts, self.num_rounds)  # an optimizer without a past
        trained: list[Tensor] = [p for p in learner.parameters.values() if p.requires_grad]
        with torch.no_grad():
            begin = [stack[number].clone() for stack in work.weights] if work.proximal else []
            torch._foreach_copy_(trained, [stack[number] for stack in work.weights])
        for module in self.parts.modules:
            module.train()
        lr, losses, weights, rates = learner.lr(work.round), 0.0, 0.0, 0.0
        for indices in work.batches[number]:
            micro = self.island.to_device(MicroBatch(self.read(indices, work.round)))
            gradient = self.island.forward_backward(self.parts, [micro])
            if work.proximal:  # before clipping: it is part of the loss
                self.island.clip(self.parts, gradient, None)  # the mean
                gradient.factor = 1.0
                pull = [now - before for now, before in zip(trained, begin, strict=True)]
                torch._foreach_add_(self.parts.gradients(), pull, alpha=work.proximal)
            self.island.clip(self.parts, gradient, learner.clip_grad_norm)
            if work.corrections is not None:
                torch._foreach_add_(self.parts.gradients(), [stack[number] for stack in work.corrections])
            if gradient.weight:
                learner.step()
            losses, weights, rates = losses + gradient.loss * gradient.weight, weights + gradient.weight, rates + lr
        with torch.no_grad():
            torch._foreach_copy_([stack[number] for stack in work.weights], trained)
        return losses, weights, rates

"""The outer step: from what was agreed and the mean of all moves to what is agreed next."""

from __future__ import annotations

import torch
from torch import Tensor

from konvoi.plan.convoy import Convoy


class OuterStep:
    """Of federations: on the pseudo-gradient that the mean move is, by the plan's rule, in float32 or float64.

    "sgd" has Nesterov's momentum, as `Anchor` has it; the others are algorithm 2 of arXiv 2003.00295, without
    correction of the bias, and begin with tau squared as their second moment, as there.
    """

    def __init__(self, plan: Convoy, like: Tensor) -> None:
        self.plan = plan
        self.state: dict[str, Tensor] = {}  # alike for all that agree; checkpoints hold it
        if plan.outer_momentum or plan.outer != "sgd":
            self.state["first"] = torch.zeros_like(like)
        if plan.outer != "sgd":
            self.state["second"] = torch.full_like(like, plan.outer_eps**2)

    @torch.no_grad()
    def take(self, agreed: Tensor, mean: Tensor) -> None:
        """In place. `mean`: agreed weights minus theirs, so that it is stepped against."""
        plan, first, second = self.plan, self.state.get("first"), self.state.get("second")
        step = mean
        if plan.outer == "sgd":
            if first is not None:
                first.mul_(plan.outer_momentum).add_(mean)
                step = mean + plan.outer_momentum * first
        else:
            assert first is not None
            assert second is not None
            first.mul_(plan.outer_momentum).add_(mean, alpha=1 - plan.outer_momentum)
            square = mean * mean
            if plan.outer == "adagrad":
                second.add_(square)
            elif plan.outer == "adam":
                second.mul_(plan.outer_beta2).add_(square, alpha=1 - plan.outer_beta2)
            else:
                second.sub_(square * torch.sign(second - square), alpha=1 - plan.outer_beta2)
            step = first / (second.sqrt() + plan.outer_eps)
        agreed.sub_(step, alpha=plan.outer_lr)

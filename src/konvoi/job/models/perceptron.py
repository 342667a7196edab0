"""The module behind models.mlp."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from konvoi.job.models.kaiming import kaiming_init


class Perceptron(nn.Module):
    """`(batch, *input_shape)` to `(batch, num_outputs)`."""

    def __init__(self, input_shape: tuple[int, ...], widths: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        sizes = (math.prod(input_shape), *widths)
        self.blocks = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], num_outputs)
        if not self.head.weight.is_meta:
            for name, module in self.named_modules():
                self.init_module(name, module, None)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for block in self.blocks:
            x = torch.relu(block(x))
        outputs: Tensor = self.head(x)
        return outputs

    def init_module(self, name: str, module: nn.Module, generator: torch.Generator | None) -> None:
        kaiming_init(name, module, generator)

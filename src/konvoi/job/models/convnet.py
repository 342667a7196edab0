"""The module behind models.cnn."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from konvoi.job.models.kaiming import kaiming_init

NUM_GROUPS = 8  # arXiv 1803.08494 table 3: the count hardly matters between 2 and 64


class ConvNet(nn.Module):
    """`(batch, channels, height, width)` to `(batch, num_outputs)`."""

    def __init__(self, in_channels: int, block_channels: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        sizes = pairwise((in_channels, *block_channels))
        self.blocks = nn.ModuleList(
            ConvBlock(before, after, stride=1 if index == 0 else 2) for index, (before, after) in enumerate(sizes)
        )
        self.head = nn.Linear(block_channels[-1], num_outputs)
        if not self.head.weight.is_meta:
            for name, module in self.named_modules():
                self.init_module(name, module, None)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.head(x.mean(dim=(-2, -1)))
        return outputs

    def init_module(self, name: str, module: nn.Module, generator: torch.Generator | None) -> None:
        kaiming_init(name, module, generator)


class ConvBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)  # the norm has one
        self.norm = nn.GroupNorm(math.gcd(NUM_GROUPS, after), after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))  # (batch, after, height/stride, width/stride)

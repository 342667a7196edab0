"""Initial weights for networks of ReLUs."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def kaiming_init(name: str, module: nn.Module, generator: torch.Generator | None) -> None:
    """Normal with variance 2/fan_in before a ReLU (He et al., arXiv 1502.01852 equation 10), 1/fan_in in `head`.

    Biases are zero, norms the identity. What a module's children own is theirs.
    """
    if isinstance(module, nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if name == "head" else "relu", generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

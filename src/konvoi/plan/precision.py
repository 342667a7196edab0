"""What a precision means: the dtype of parameters, of the forward and backward pass, and the loss scale."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    parameters: torch.dtype = torch.float32
    compute: torch.dtype | None = None  # None: as the parameters

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """torch's autocast for the forward pass: matrix products in the low precision, sums and losses in fp32."""
        if self.compute is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.compute)


def precision(name: str) -> Precision:
    return {
        "fp32": Precision(),
        "bf16": Precision(compute=torch.bfloat16),
        "fp16": Precision(compute=torch.float16),
        "fp64": Precision(parameters=torch.float64),
    }[name]


@dataclass(frozen=True)
class LossScale:
    """A factor, always a power of two, that the loss carries through the backward pass.

    As powers of two change no digit, the gradients do not depend on it as long as nothing over- or underflows. Under
    fp16 it grows until something overflows (arXiv 1710.03740, section 3.2); elsewhere it stays.
    """

    value: float
    is_dynamic: bool = False
    num_good_steps: int = 0

    GROWTH_INTERVAL = 2000  # torch.amp.GradScaler's default

    def after(self, is_finite: bool) -> LossScale:
        """The scale for the next step."""
        if not self.is_dynamic:
            return self
        if not is_finite:
            return LossScale(self.value / 2, True, 0)
        if self.num_good_steps + 1 >= self.GROWTH_INTERVAL:
            return LossScale(self.value * 2, True, 0)
        return LossScale(self.value, True, self.num_good_steps + 1)

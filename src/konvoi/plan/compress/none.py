"""Updates as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused
from konvoi.plan.compress.codec import check_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plain:
    """Every bit."""

    def encode(self, values: Tensor) -> bytes:
        return values.detach().contiguous().numpy().tobytes()

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import torch

        check_size(self, data, like)
        values = torch.frombuffer(bytearray(data), dtype=like.dtype) if data else like.new_zeros(0)
        if not values.isfinite().all():
            raise MessageRefused("an update is not finite", expected="numbers")
        return values

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        return length * itemsize


def none() -> Plain:
    """Every bit of every value.

    >>> none().num_bytes(10)
    40
    """
    return Plain()

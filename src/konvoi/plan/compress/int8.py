"""Eight bits for a value, with a scale for each block of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan.compress.codec import check_size

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 15  # values worked on at a time, so that they stay in the cache


@dataclass(frozen=True)
class Int8:
    """Values over 1/127 of their block's largest, rounded (arXiv 1511.04561 section 3; blocks as in arXiv 2110.02861).
    The scale is a float32."""

    block: int = 256

    def __post_init__(self) -> None:
        if self.block < 1 or CHUNK % self.block:
            raise PlanError(f"int8's blocks divide {CHUNK}", found=repr(self.block))

    def encode(self, values: Tensor) -> bytes:
        import torch
        import torch.nn.functional as F

        values = values.detach()
        num_blocks = -(-len(values) // self.block)
        scales = torch.empty(num_blocks, dtype=torch.float32)
        codes = torch.empty(num_blocks, self.block, dtype=torch.int8)
        work = torch.empty(CHUNK // self.block, self.block, dtype=values.dtype)
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            if len(part) % self.block:
                part = F.pad(part, (0, -len(part) % self.block))
            part = part.view(-1, self.block)
            here, first = work[: len(part)], start // self.block
            largest = torch.maximum(part.amax(1), part.amin(1).neg_())  # twenty times as quick as the norm
            scale = scales[first : first + len(part)]
            scale.copy_(largest).div_(127)
            inverse = scale.to(values.dtype).reciprocal().nan_to_num_(posinf=0.0)
            torch.mul(part, inverse[:, None], out=here)
            codes[first : first + len(part)].copy_(here.round_())
        return scales.numpy().tobytes() + codes.numpy().tobytes()

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import torch

        check_size(self, data, like)
        num_blocks = -(-len(like) // self.block)
        whole = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.int8)[: len(data)]
        scales = whole[: 4 * num_blocks].view(torch.float32)
        if not (scales.isfinite() & (scales >= 0)).all():
            raise MessageRefused("an update is not finite", expected="scales that are numbers of at least 0")
        codes = whole[4 * num_blocks :].view(num_blocks, self.block)
        return (codes.to(like.dtype) * scales.to(like.dtype)[:, None]).view(-1)[: len(like)]

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        return -(-length // self.block) * (4 + self.block)


def int8(*, block: int = 256) -> Int8:
    """
    >>> int8().num_bytes(512)
    520
    """
    return Int8(block)

"""One, two or four bits for a value, with a scale for each block of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import PlanError
from konvoi.plan.compress.codec import as_tensor, check_size, read_scales

if TYPE_CHECKING:
    from torch import Tensor

STEPS = {1: 1.596, 2: 0.9957, 4: 0.3352}
"""The step of the uniform quantizer that leaves out least of a normal distribution of variance 1 (Max, Quantizing for
Minimum Distortion, 1960, table II)."""


@dataclass(frozen=True)
class LowBit:
    """Values are divided by their block's root mean square, and rounded to the middle of one of 2**bits equal steps;
    the outermost take what lies beyond. The scale is a bfloat16."""

    bits: int
    block: int

    def __post_init__(self) -> None:
        if self.bits not in STEPS:
            raise PlanError("low_bit takes 1, 2 or 4 bits", found=repr(self.bits))
        if self.block < 8 or self.block % 8:
            raise PlanError("a block has a multiple of 8 values", found=repr(self.block))

    def encode(self, values: Tensor) -> bytes:
        import torch
        import torch.nn.functional as F

        whole, missing = values.detach(), -len(values) % self.block
        blocks = (F.pad(whole, (0, missing)) if missing else whole).view(-1, self.block)
        scales = torch.linalg.vector_norm(blocks, dim=1).mul_(self.block**-0.5).bfloat16()
        told: bytes = scales.view(torch.int16).numpy().tobytes()
        return told + self._packed(blocks, scales)

    def _packed(self, blocks: Tensor, scales: Tensor) -> bytes:
        import numpy as np
        import torch

        if self.bits == 1:
            return np.packbits(blocks.numpy() >= 0, bitorder="little").tobytes()  # torch compares five times as slowly
        inverse = (1 / (scales.to(blocks.dtype) * STEPS[self.bits])).nan_to_num_(posinf=0.0)
        half = 1 << (self.bits - 1)
        codes = (blocks * inverse[:, None]).floor_().clamp_(-half, half - 1).add_(half).to(torch.uint8).view(-1)
        per_byte = 8 // self.bits
        packed: Tensor = codes[0::per_byte].clone()
        for place in range(1, per_byte):
            packed |= codes[place::per_byte] << (place * self.bits)
        return packed.numpy().tobytes()

    def decode(self, data: bytes, like: Tensor) -> Tensor:

        check_size(self, data, like)
        num_blocks = -(-len(like) // self.block)
        whole = as_tensor(data)
        scales = read_scales(whole[: 2 * num_blocks], like.dtype)
        values = self._unpacked(whole[2 * num_blocks :], like).view(num_blocks, self.block)
        return values.mul_((scales * STEPS[self.bits])[:, None]).view(-1)[: len(like)]

    def _unpacked(self, packed: Tensor, like: Tensor) -> Tensor:
        """In steps of the quantizer."""
        import numpy as np
        import torch

        half, per_byte = 1 << (self.bits - 1), 8 // self.bits
        if self.bits == 1:
            of_byte = ((torch.arange(256)[:, None] >> torch.arange(8) & 1) - 0.5).to(like.dtype)
            return torch.from_numpy(np.take(of_byte.numpy(), packed.numpy(), axis=0, mode="clip"))
        values = like.new_empty(len(packed) * per_byte)
        for place in range(per_byte):
            values[place::per_byte] = packed >> (place * self.bits) & (2 * half - 1)
        return values.add_(0.5 - half)

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        num_blocks = -(-length // self.block)
        return num_blocks * (2 + self.block * self.bits // 8)


def low_bit(bits: int, *, block: int = 0) -> LowBit:
    """`block`: values that share a scale; 64 for four bits, 256 for fewer.

    >>> low_bit(1).num_bytes(256) * 8 / 256
    1.0625
    """
    return LowBit(bits, block or (64 if bits == 4 else 256))


def four_bit(*, block: int = 64) -> LowBit:
    """`low_bit(4)`.

    >>> four_bit().num_bytes(64)
    34
    """
    return low_bit(4, block=block)

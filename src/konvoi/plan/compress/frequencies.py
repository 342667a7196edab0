"""The strongest frequencies of blocks of values: what decoupled momentum sends."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan.compress.codec import as_tensor, check_size, read_scales

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIDE = 64
BLOCK = SIDE * SIDE


@dataclass(frozen=True)
class Frequencies:
    """Of each block of 64 x 64 values the `number` largest coefficients of their cosine transform: the places, the
    signs, and one size for all (Peng et al., Decoupled Momentum Optimization, arXiv 2411.19870, section 4)."""

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= BLOCK:
            raise PlanError(f"a block of {BLOCK} values has as many frequencies", found=repr(self.number))

    def encode(self, values: Tensor) -> bytes:
        import numpy as np
        import torch
        import torch.nn.functional as F

        base = cosines(values.dtype)
        blocks = F.pad(values.detach(), (0, -len(values) % BLOCK)).view(-1, SIDE, SIDE)
        strong = (base @ blocks @ base.T).view(-1, BLOCK)
        places = strong.abs().topk(self.number, dim=1, sorted=False).indices.sort(dim=1).values
        chosen = strong.gather(1, places)
        told = (chosen.abs().mean(1).bfloat16().view(torch.int16), places.to(torch.int16))
        signs = np.packbits((chosen < 0).view(-1).numpy(), bitorder="little")
        return b"".join([*(one.contiguous().numpy().tobytes() for one in told), signs.tobytes()])

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import numpy as np
        import torch

        check_size(self, data, like)
        num_blocks = -(-len(like) // BLOCK)
        whole = as_tensor(data)
        scales = read_scales(whole[: 2 * num_blocks], like.dtype)
        begin, end = 2 * num_blocks, 2 * num_blocks * (1 + self.number)
        places = whole[begin:end].view(torch.int16).view(num_blocks, self.number).long()
        if not ((places >= 0) & (places < BLOCK)).all() or not (places.diff(dim=1) > 0).all():
            raise MessageRefused("places of frequencies are in order, differ, and lie in their block")
        signs = torch.from_numpy(np.unpackbits(whole[end:].numpy(), bitorder="little")[: num_blocks * self.number])
        chosen = (1 - 2 * signs.to(like.dtype)).view(num_blocks, self.number) * scales[:, None]
        strong = like.new_zeros(num_blocks, BLOCK).scatter_(1, places, chosen).view(num_blocks, SIDE, SIDE)
        base = cosines(like.dtype)
        values = _times(_times(strong, base).transpose(1, 2), base).transpose(1, 2).reshape(-1)[: len(like)]
        if not values.isfinite().all():
            raise MessageRefused("an update is not finite", expected="sums of frequencies that are numbers")
        return values

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        num_blocks = -(-length // BLOCK)
        return num_blocks * (2 + 2 * self.number) + -(-num_blocks * self.number // 8)


@functools.cache
def cosines(dtype: torch.dtype) -> Tensor:
    """The orthonormal DCT-II: a row a frequency."""
    import torch

    rows = [[math.cos(math.pi * (2 * n + 1) * k / (2 * SIDE)) for n in range(SIDE)] for k in range(SIDE)]
    base = torch.tensor(rows, dtype=torch.float64) * math.sqrt(2 / SIDE)
    base[0] /= math.sqrt(2)
    return base.to(dtype)


def _times(blocks: Tensor, base: Tensor) -> Tensor:
    """`blocks @ base`, a summand at a time: the same on every machine, which a product of matrices need not be."""
    total = blocks.new_zeros(blocks.shape)
    for number, row in enumerate(base):
        total += blocks[:, :, number : number + 1] * row
    return total


def frequencies(number: int = 32) -> Frequencies:
    """`number` of each 4096.

    >>> frequencies(32).num_bytes(4096)
    70
    """
    return Frequencies(number)

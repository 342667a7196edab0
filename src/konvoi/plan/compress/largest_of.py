"""The largest value of each group: its place, its sign, and one size for a block of groups. Sparse, and of few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import PlanError
from konvoi.plan.compress.codec import as_tensor, check_size, read_scales

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024  # values that share a size
GROUPS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class LargestOf:
    """A block's values lie in `group` rows. Each column is a group, of which one value is kept, as its sign times the
    mean size of all that the block keeps: a place takes log2(group) bits, where `TopK` wants eight."""

    group: int

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise PlanError(f"largest_of keeps one of {', '.join(map(str, GROUPS))} values", found=repr(self.group))

    @property
    def _columns(self) -> int:
        return BLOCK // self.group

    @property
    def _planes(self) -> int:
        """Bits of a group: its place's, and the sign."""
        return self.group.bit_length()

    def encode(self, values: Tensor) -> bytes:
        import numpy as np
        import torch
        import torch.nn.functional as F

        rows = F.pad(values.detach(), (0, -len(values) % BLOCK)).view(-1, self.group, self._columns)
        size, place = rows.abs().max(1)
        scales = size.mean(1).bfloat16()
        negative = rows.gather(1, place[:, None]).view(-1) < 0
        places = place.view(-1).to(torch.uint8)
        planes = [negative, *(places >> bit & 1 for bit in range(self._planes - 1))]
        told: list[bytes] = [scales.view(torch.int16).numpy().tobytes()]
        return b"".join(told + [np.packbits(plane.numpy(), bitorder="little").tobytes() for plane in planes])

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import numpy as np
        import torch

        check_size(self, data, like)
        num_blocks = -(-len(like) // BLOCK)
        whole = as_tensor(data)
        scales = read_scales(whole[: 2 * num_blocks], like.dtype)
        bits = np.unpackbits(whole[2 * num_blocks :].numpy(), bitorder="little")
        planes = torch.from_numpy(bits).view(self._planes, num_blocks, 1, self._columns)
        place = torch.zeros(planes.shape[1:], dtype=torch.long)
        for bit, plane in enumerate(planes[1:]):
            place |= plane.long() << bit
        kept = (1 - 2 * planes[0].to(like.dtype)) * scales.view(-1, 1, 1)
        rows = like.new_zeros(num_blocks, self.group, self._columns).scatter_(1, place, kept)
        return rows.view(-1)[: len(like)]

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        return -(-length // BLOCK) * (2 + self._columns * self._planes // 8)


def largest_of(group: int) -> LargestOf:
    """One of each `group` values: 2, 4, 8, 16, 32 or 64. With 8 it is half of what one bit a value takes, and two
    thirds of what that tells.

    >>> largest_of(8).num_bytes(1024) * 8 / 1024
    0.515625
    """
    return LargestOf(group)

"""The largest values of each block: their places, their signs, and one size for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan.compress.codec import as_tensor, check_size, read_scales

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256  # a place is a byte


@dataclass(frozen=True)
class TopK:
    """`number` of each 256 values, as the sign times their mean size: sparse and of one bit (arXiv 1911.08727). The
    rest is error feedback's."""

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= BLOCK:
            raise PlanError("top_k keeps 1 to 256 of 256 values", found=repr(self.number))

    def encode(self, values: Tensor) -> bytes:
        import torch
        import torch.nn.functional as F

        blocks = F.pad(values.detach(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
        places = blocks.abs().topk(self.number, dim=1, sorted=False).indices.sort(dim=1).values
        chosen = blocks.gather(1, places)
        scales = chosen.abs().mean(1).bfloat16()
        signs = F.pad((chosen < 0).to(torch.uint8).view(-1), (0, -chosen.numel() % 8)).view(-1, 8)
        packed = signs[:, 0].clone()
        for place in range(1, 8):
            packed |= signs[:, place] << place
        return b"".join(
            t.numpy().tobytes() for t in (scales.view(torch.int16), places.to(torch.uint8).contiguous(), packed)
        )

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import torch

        check_size(self, data, like)
        num_blocks = -(-len(like) // BLOCK)
        whole = as_tensor(data)
        scales = read_scales(whole[: 2 * num_blocks], like.dtype)
        number = num_blocks * self.number
        places = whole[2 * num_blocks : 2 * num_blocks + number].view(num_blocks, self.number).long()
        packed = whole[2 * num_blocks + number :]
        signs = torch.stack([packed >> place & 1 for place in range(8)], dim=1).view(-1)[:number]
        chosen = (1 - 2 * signs.to(like.dtype)).view(num_blocks, self.number) * scales[:, None]
        if len(places) and not (places.diff(dim=1) > 0).all():
            raise MessageRefused("places of values are in order and differ")
        values = like.new_zeros(num_blocks, BLOCK).scatter_(1, places, chosen).view(-1)
        return values[: len(like)]

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        num_blocks = -(-length // BLOCK)
        return num_blocks * (2 + self.number) + -(-num_blocks * self.number // 8)


def top_k(share: float) -> TopK:
    """`share` of the values, rounded to one in 256 or more.

    >>> top_k(0.03).number
    8
    """
    return TopK(max(1, round(share * BLOCK)) if share <= 1 else BLOCK + 1)

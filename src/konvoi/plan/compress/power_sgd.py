"""Matrices as the product of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan.compress.codec import Piece, as_tensor, check_size

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 2  # of the power iteration, which begins with the same random matrix every time


@dataclass(frozen=True)
class PowerSGD:
    """Each matrix M as P Qᵀ of `rank` columns, found by a power iteration, in bfloat16; vectors, and matrices of which
    that would be more bytes, whole (Vogels et al., arXiv 1905.13727, algorithm 1). There the iteration goes on from one
    step to the next; here a message can be made from its values alone, for which it takes a second turn."""

    rank: int
    pieces: tuple[Piece, ...] = ()  # what the vector consists of; none: it is one row

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError("power_sgd has a rank of at least 1", found=repr(self.rank))

    def of(self, pieces: tuple[Piece, ...]) -> PowerSGD:
        return replace(self, pieces=pieces)

    def _pieces(self, length: int) -> tuple[Piece, ...]:
        return self.pieces or (Piece(0, length, max(1, length)),)

    def _is_thin(self, piece: Piece) -> bool:
        is_less = 2 * self.rank * (piece.rows + piece.width) < 4 * piece.length
        return is_less and self.rank < min(piece.rows, piece.width)

    def encode(self, values: Tensor) -> bytes:
        import torch
        import torch.nn.functional as F

        told: list[Tensor] = []
        vectors = values.detach().split([piece.length for piece in self._pieces(len(values))])
        for piece, vector in zip(self._pieces(len(values)), vectors, strict=True):
            if not self._is_thin(piece):
                told.append(vector)
                continue
            matrix = F.pad(vector, (piece.before, piece.behind)).view(piece.rows, piece.width).double()
            random = torch.Generator().manual_seed(piece.width)
            right = torch.randn(piece.width, self.rank, generator=random, dtype=matrix.dtype)
            for _ in range(ROUNDS):
                left = torch.linalg.qr(matrix @ right).Q
                right = matrix.T @ left
            told += [left.T.bfloat16(), right.T.bfloat16()]
        return b"".join(one.contiguous().view(torch.uint8).numpy().tobytes() for one in told)

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        import torch

        check_size(self, data, like)
        whole, values = as_tensor(data), torch.empty_like(like)
        begin = start = 0

        def read(number: int, dtype: torch.dtype) -> Tensor:
            nonlocal begin
            end = begin + number * dtype.itemsize
            read = whole[begin:end].clone().view(dtype).to(like.dtype)  # its bytes may lie anywhere
            begin = end
            if not read.isfinite().all():
                raise MessageRefused("an update is not finite", expected="numbers")
            return read

        for piece in self._pieces(len(like)):
            stop = start + piece.length
            if self._is_thin(piece):
                left = read(self.rank * piece.rows, torch.bfloat16).view(self.rank, -1, 1)
                right = read(self.rank * piece.width, torch.bfloat16).view(self.rank, 1, -1)
                matrix = like.new_zeros(piece.rows, piece.width)
                for column, row in zip(left, right, strict=True):
                    matrix += column * row  # the same on every machine, which a product of matrices need not be
                values[start:stop] = matrix.view(-1)[piece.before : piece.before + piece.length]
            else:
                values[start:stop] = read(piece.length, like.dtype)
            start = stop
        if not values.isfinite().all():
            raise MessageRefused("an update is not finite", expected="products that are numbers")
        return values

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        thin = [(self._is_thin(piece), piece) for piece in self._pieces(length)]
        return sum(
            2 * self.rank * (piece.rows + piece.width) if is_thin else itemsize * piece.length
            for is_thin, piece in thin
        )


def power_sgd(rank: int = 4) -> PowerSGD:
    """`rank`: columns of either factor.

    >>> power_sgd(2).rank
    2
    """
    return PowerSGD(rank)

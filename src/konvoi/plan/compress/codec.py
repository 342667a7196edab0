"""What a codec is: a pure function of the values, and its inverse up to what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from konvoi.errors import MessageRefused

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@runtime_checkable
class Codec(Protocol):
    """A frozen value. What it leaves out is the caller's to keep (error feedback, arXiv 1901.09847)."""

    def encode(self, values: Tensor) -> bytes:
        """A vector, float32 or float64, on the CPU. The same values give the same bytes."""
        ...

    def decode(self, data: bytes, like: Tensor) -> Tensor:
        """A new vector of the length and dtype of `like`. Raises: MessageRefused for bytes that `encode` cannot make of
        such a vector of finite values."""
        ...

    def num_bytes(self, length: int, itemsize: int = 4) -> int:
        """Of what a vector of this length is encoded into."""
        ...


@dataclass(frozen=True)
class Piece:
    """What of a parameter lies in a vector: `length` of its elements, row by row of `width`."""

    before: int  # elements of the first row that do not
    length: int
    width: int

    @property
    def rows(self) -> int:
        return -(-(self.before + self.length) // self.width)

    @property
    def behind(self) -> int:
        """Elements of the last row that do not."""
        return self.rows * self.width - self.before - self.length


@runtime_checkable
class Shaped(Codec, Protocol):
    """A codec that has to know of matrices."""

    def of(self, pieces: tuple[Piece, ...]) -> Codec:
        """For vectors that consist of these, one behind the other."""
        ...


def for_pieces(codec: Codec, pieces: tuple[Piece, ...]) -> Codec:
    return codec.of(pieces) if isinstance(codec, Shaped) else codec


def check_size(codec: Codec, data: bytes, like: Tensor) -> None:
    """Raises: MessageRefused where the bytes are not of the one length that they can have."""
    expected = codec.num_bytes(like.numel(), like.itemsize)
    if len(data) != expected:
        raise MessageRefused("this is not an encoded part", found=f"{len(data)} bytes", expected=f"{expected}")


def as_tensor(data: bytes) -> Tensor:
    """Bytes that may be written over."""
    import torch

    return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]


def read_scales(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Sizes, which were sent as bfloat16. Raises: MessageRefused for those that are none."""
    import torch

    scales = data.view(torch.bfloat16).to(dtype)
    if not (scales.isfinite() & (scales >= 0)).all():
        raise MessageRefused("an update is not finite", expected="scales that are numbers of at least 0")
    return scales

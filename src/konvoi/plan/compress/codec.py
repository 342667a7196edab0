"""What a codec is: a pure function of the values, and its inverse up to what it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from konvoi.errors import MessageRefused

if TYPE_CHECKING:
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


def check_size(codec: Codec, data: bytes, like: Tensor) -> None:
    """Raises: MessageRefused where the bytes are not of the one length that they can have."""
    expected = codec.num_bytes(like.numel(), like.itemsize)
    if len(data) != expected:
        raise MessageRefused("this is not an encoded part", found=f"{len(data)} bytes", expected=f"{expected}")

"""The agreed state in pieces that are named by their hashes, so that a newcomer can take each from anybody."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from konvoi.errors import MessageRefused

CHUNK = 1 << 20  # bytes


class Chunks:
    """Of vectors that nobody writes into any more."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._places = {}
        names = []
        for number, vector in enumerate(vectors):
            raw = _raw(vector)
            for start in range(0, len(raw), CHUNK):
                name = hashed(raw[start : start + CHUNK])
                self._places[name] = (number, start)
                names.append(name)
        self.vectors = list(vectors)
        self.names = tuple(names)
        self.root = root(self.names)

    def find(self, name: str) -> bytes | None:
        if name not in self._places:
            return None
        number, start = self._places[name]
        return bytes(_raw(self.vectors[number])[start : start + CHUNK])


def root(names: Sequence[str]) -> str:
    """What stands for all of them."""
    return hashed("".join(names).encode())


def assemble(names: Sequence[str], data: Mapping[str, bytes], like: Sequence[Tensor]) -> list[Tensor]:
    """The vectors, each as long as the one in `like`. Raises: MessageRefused where they are not."""
    rest, vectors = list(names), []
    for one in like:
        number = -(-one.numel() * one.itemsize // CHUNK)
        raw = b"".join(data[name] for name in rest[:number])
        del rest[:number]
        if len(raw) != one.numel() * one.itemsize:
            raise MessageRefused(
                "a state of another size", found=f"{len(raw)} bytes", expected=one.numel() * one.itemsize
            )
        vectors.append(torch.frombuffer(bytearray(raw), dtype=one.dtype) if raw else one.clone())
    if rest or not all(vector.isfinite().all() for vector in vectors):
        raise MessageRefused("a state that cannot be read", found=f"{len(rest)} pieces too many, or not finite")
    return vectors


def hashed(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:32]  # processors have instructions for it: twice as quick as blake2


def _raw(vector: Tensor) -> memoryview:
    raw: Any = vector.numpy()
    return memoryview(raw).cast("B")

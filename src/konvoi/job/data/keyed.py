"""Everything random about a sample depends on (seed, epoch, index): never on the worker that reads it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from konvoi.job.data.positions import Ints, mix

Transform: TypeAlias = Callable[[Any, np.random.Generator], Any]  # (sample, rng) -> sample


@dataclass(frozen=True)
class Key:
    """What a sample's randomness depends on. `layer` tells apart the transforms that are stacked on one data set."""

    seed: int
    epoch: int
    index: int
    layer: int = 0

    def below(self) -> Key:
        """The key of what lies under a transform, which must not repeat the transform's draws."""
        return replace(self, layer=self.layer + 1)

    @property
    def number(self) -> int:
        """64 bits."""
        return mix(mix(mix(mix(self.seed) + self.epoch) + self.index) + self.layer)

    def generator(self) -> np.random.Generator:
        """
        >>> key = Key(seed=0, epoch=2, index=7)
        >>> key.generator().random() == key.generator().random() != key.below().generator().random()
        True
        """
        return np.random.Generator(np.random.Philox(self.number))


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of some samples, as arrays."""

    seed: int
    epochs: Ints
    indices: Ints

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        for epoch, index in zip(self.epochs.tolist(), self.indices.tolist(), strict=True):
            yield Key(self.seed, epoch, index)

    def __getitem__(self, cut: slice) -> Keys:
        return Keys(self.seed, self.epochs[cut], self.indices[cut])


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """On leaving, python's, numpy's and torch's global generators are as they were: dropout must not notice a read."""
    torch = sys.modules.get("torch")  # what nobody has imported has drawn nothing
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)


def seed_global_generators(key: Key) -> None:
    """Seed python's, numpy's and torch's (CPU) global generators, from which other people's data sets draw."""
    number = key.number
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch = sys.modules.get("torch")
    if torch:
        torch.default_generator.manual_seed(number >> 1)  # the CPU's alone: torch.manual_seed would touch devices


def transformed(sample: Any, fn: Transform, key: Key) -> Any:
    """`fn(sample, rng)`, where the global generators are seeded as well; the caller puts them back."""
    seed_global_generators(key)
    return fn(sample, key.generator())

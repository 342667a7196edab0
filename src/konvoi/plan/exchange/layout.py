"""Where each parameter lies in the vector that islands exchange, and how that is cut: the same on every island, as it
follows from the names and shapes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konvoi.errors import PlanError

ALIGNED = 256  # parts begin at multiples of this, so that no codec's block is cut

Range = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Fragments are runs of whole parameters, about equally large; a fragment's parts are ranges of it."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    fragments: tuple[Range, ...]  # of the parameters' numbers
    num_parts: int

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], *, fragments: int, num_parts: int) -> Layout:
        """Raises: PlanError where there are fewer parameters than fragments.

        >>> Layout.of({"a": (3,), "b": (2, 2), "c": (9,)}, fragments=2, num_parts=1).fragments
        ((0, 2), (2, 3))
        """
        sizes = [math.prod(shape) for shape in shapes.values()]
        if fragments > len(sizes):
            raise PlanError("more fragments than parameters", found=f"{fragments} fragments of {len(sizes)} parameters")
        cuts, total, done = [0], sum(sizes), 0
        for number, size in enumerate(sizes):
            left = len(sizes) - number  # a parameter at least for each fragment to come
            begun = len(cuts)
            if begun < fragments and number > cuts[-1]:
                is_full = done + size / 2 > total * begun / fragments
                if is_full or left == fragments - begun:
                    cuts.append(number)
            done += size
        cuts.append(len(sizes))
        return cls(
            tuple(shapes),
            tuple(tuple(shape) for shape in shapes.values()),
            tuple(itertools.pairwise(cuts)),
            num_parts,
        )

    def size(self, fragment: int) -> int:
        start, stop = self.fragments[fragment]
        return sum(math.prod(shape) for shape in self.shapes[start:stop])

    def parts(self, fragment: int) -> list[Range]:
        """Ranges of the fragment's elements; the last may be empty where there is little.

        >>> Layout.of({"a": (700,)}, fragments=1, num_parts=2).parts(0)
        [(0, 512), (512, 700)]
        """
        size = self.size(fragment)
        step = -(-size // (self.num_parts * ALIGNED)) * ALIGNED
        return [(min(n * step, size), min((n + 1) * step, size)) for n in range(self.num_parts)]

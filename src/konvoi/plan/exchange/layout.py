"""Where each parameter lies in the vector that islands exchange, and how that is cut: the same on every island, as it
follows from the names and shapes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from konvoi.errors import PlanError
from konvoi.plan.compress.codec import Piece

ALIGNED = 256  # parts begin at multiples of this, so that few blocks of codecs are cut

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

    def pieces(self, fragment: int, part: Range) -> tuple[Piece, ...]:
        """What of which parameter a part holds, in its order; a vector is one row.

        >>> layout = Layout.of({"a": (3, 100), "b": (20,)}, fragments=1, num_parts=2)
        >>> layout.pieces(0, (256, 320))
        (Piece(before=56, length=44, width=100), Piece(before=0, length=20, width=20))
        """
        found, begin = [], 0
        first, last = self.fragments[fragment]
        for shape in self.shapes[first:last]:
            end = begin + math.prod(shape)
            start, stop = max(begin, part[0]), min(end, part[1])
            if start < stop:
                width = math.prod(shape[1:]) if len(shape) > 1 else end - begin
                found.append(Piece((start - begin) % width, stop - start, width))
            begin = end
        return tuple(found)

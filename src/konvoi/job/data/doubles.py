"""Samples that are in two parts of a data set would be trained on and tested with: found by their bytes, left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from konvoi.job.data.positions import Ints


def digest(*fields: bytes) -> bytes:
    """16 bytes that two samples share only where they are equal."""
    combined = hashlib.blake2b(digest_size=16)
    for field in fields:
        combined.update(len(field).to_bytes(8, "big"))
        combined.update(field)
    return combined.digest()


def without_doubles(parts: Mapping[str, Sequence[bytes]]) -> tuple[dict[str, Ints], dict[str, int]]:
    """(rows that stay in each part, counts for the record), from each part's digests, in the order train, val, test.

    What is also in a later part leaves the earlier one; doubles inside one part stay and are counted.

    >>> rows, counts = without_doubles({"train": [b"a", b"b", b"b", b"c"], "val": [b"c", b"d"]})
    >>> rows["train"].tolist(), rows["val"].tolist(), counts
    ([0, 1, 2], [0, 1], {'left_out_of_train': 1, 'inside_train': 1, 'left_out_of_val': 0, 'inside_val': 0})
    """
    rows: dict[str, Ints] = {}
    counts: dict[str, int] = {}
    names = list(parts)
    for place, name in enumerate(names):
        later = _union(parts[other] for other in names[place + 1 :])
        stay = [row for row, mark in enumerate(parts[name]) if mark not in later]
        rows[name] = np.array(stay, dtype=np.int64)
        counts[f"left_out_of_{name}"] = len(parts[name]) - len(stay)
        counts[f"inside_{name}"] = len(stay) - len({parts[name][row] for row in stay})
    return rows, counts


def _union(groups: Iterable[Iterable[bytes]]) -> set[bytes]:
    return {mark for group in groups for mark in group}

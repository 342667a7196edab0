"""The area under the ROC curve from ranks, and how far chance can move it: the bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RESAMPLES, SEED = 1000, 0


def auc(scores: Array, labels: Array) -> float:
    """The chance that a positive (label 1) has a higher score than a negative; equal scores count half.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of equal scores their mean
    is_positive = labels == 1
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def resampled(scores: Sequence[Array], labels: Array, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """(resamples,): the mean AUC of several models, each time over images that are drawn anew, with replacement.

    The same images for the same seed, so that two groups of models can be compared image by image. A draw that has no
    image of one class is made again.
    """
    draw, found = np.random.default_rng(seed), []
    while len(found) < resamples:
        rows = draw.integers(0, len(labels), len(labels))
        if 0 < labels[rows].sum() < len(rows):
            found.append(np.mean([auc(one[rows], labels[rows]) for one in scores]))
    return np.array(found)


def interval(values: Array) -> tuple[float, float]:
    """From the 2.5th to the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)

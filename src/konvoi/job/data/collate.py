"""Samples to a batch: torch's `default_collate`, with a short cut for dicts of arrays, tensors and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from konvoi.errors import DataError

Collate: TypeAlias = Callable[[list[Any]], Mapping[str, Any]]


def collate(samples: list[Any]) -> Mapping[str, Any]:
    """A dict of tensors with the batch as dim 0.

    Raises: DataError where samples are no dicts, differ in their keys, or differ in shape.
    """
    first = samples[0]
    if not isinstance(first, Mapping):
        raise DataError(
            "a sample must be a dict of arrays, tensors or numbers",
            found=type(first).__name__,
            expected='for example {"inputs": array, "labels": 3}',
            hint="return a dict from __getitem__, or wrap the data set with konvoi.data.of or konvoi.data.map",
        )
    return {name: _column(name, samples) for name in first}


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays that are already stacked, as tensors without a copy where they are writable."""
    import torch

    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def pinned(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch in page-locked memory. Needs an accelerator."""
    import torch

    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _column(name: str, samples: Sequence[Mapping[str, Any]]) -> Any:
    import torch
    from torch.utils.data import default_collate

    try:
        values = [sample[name] for sample in samples]
    except KeyError:
        keys = sorted({tuple(sorted(map(str, sample))) for sample in samples})
        raise DataError("the samples of a batch have different keys", found=keys, expected="one set of keys") from None
    try:
        if isinstance(values[0], np.ndarray):
            return torch.from_numpy(np.stack(values))
        if isinstance(values[0], torch.Tensor):
            return torch.stack(values)
        return default_collate(values)
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(
            f"'{name}' cannot be put into one batch: {error}",
            found=", ".join(sorted({_kind(value) for value in values})),
            expected="one shape and type for every sample",
            hint="pad or crop in the data set, or pass a collate function of your own",
        ) from error


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__}{tuple(shape)}"

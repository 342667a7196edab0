"""`data.slot`: a place in a recipe for data that are where the recipe is trained, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konvoi.errors import DataError
from konvoi.job.data.mapping import Map
from konvoi.job.data.normalized import Normalized, columns_of
from konvoi.job.data.of import of
from konvoi.values import DataSpec, Splits


@dataclass(frozen=True)
class Slot:
    """Data that each member of a federation has of its own. Made by `kv.data.slot`."""

    read: Callable[[str], Any]
    example: str | None = None
    path: str | None = None  # of a site's own data
    spec: DataSpec | None = None  # what they have to look like

    def at(self, path: str | Path | None, spec: DataSpec | None = None) -> Slot:
        """Filled with a site's own data, which have to look as `spec` says; None: with its example."""
        return dataclasses.replace(self, path=None if path is None else str(path), spec=spec or self.spec)

    def prepare(self) -> Splits:
        """Raises: DataError where the slot is empty, what is in it looks different from what the recipe wants, or it is
        normalised already."""
        where = self.path or self.example
        if where is None:
            raise DataError(
                "this recipe's data are a slot, and it is empty",
                hint="--data PATH, or kv.data.slot(..., example=PATH) to try the recipe out",
            )
        data = of(self.read(where))
        if columns_of(data):  # each site's would be, by numbers of its own
            hint = "kv.data.normalize(kv.data.slot(...))"
            raise DataError("what is read into a slot is normalised around it", found=where, hint=hint)
        splits = data.prepare()
        if self.spec is None:
            return splits
        _compare(splits.spec, self.spec, where)
        wanted = {name: value for name, value in vars(self.spec).items() if value is not None}
        return dataclasses.replace(splits, spec=dataclasses.replace(splits.spec, **wanted))


def slot(read: Callable[[str], Any], *, example: str | Path | None = None, spec: DataSpec | None = None) -> Slot:
    """`read(path)` makes data of what lies there (`kv.data.images`). In simulation it is `example` that is divided
    among clients; at a site of a federation it is what `--data` names. `spec` says what a sample looks like, so that a
    site can check its own data before anything begins; what it leaves open is not looked at.

    >>> slot(str).prepare()
    Traceback (most recent call last):
    konvoi.errors.DataError: this recipe's data are a slot, and it is empty
      hint: --data PATH, or kv.data.slot(..., example=PATH) to try the recipe out
    """
    if not callable(read):
        raise DataError("a slot is told how its data are read", found=repr(read), hint="kv.data.slot(kv.data.images)")
    return Slot(read, None if example is None else str(example), None, spec)


def fill(data: Any, path: str | Path | None, spec: DataSpec | None = None) -> Any:
    """The data of a job with its slot filled, also where `data.map` or `data.normalize` is around it.

    Raises: DataError without one."""
    if isinstance(data, Slot):
        return data.at(path, spec)
    if isinstance(data, (Map, Normalized)):
        return dataclasses.replace(data, data=fill(data.data, path, spec))
    raise DataError(
        "this recipe has no slot for a site's own data",
        found=type(data).__name__,
        hint="data=kv.data.slot(kv.data.images, example=PATH)",
    )


def _compare(found: DataSpec, expected: DataSpec, where: str) -> None:
    wrong = [
        (name, getattr(found, name), wanted)
        for name, wanted in vars(expected).items()
        if wanted is not None
        and getattr(found, name) != wanted
        # Whoever has nobody of the last class does not know of it.
        and not (name == "num_classes" and (found.num_classes or 0) < wanted)
    ]
    if wrong:
        raise DataError(
            f"the data at {where} are not what the recipe wants",
            found=", ".join(f"{name}={value}" for name, value, _ in wrong),
            expected=", ".join(f"{name}={value}" for name, _, value in wrong),
        )

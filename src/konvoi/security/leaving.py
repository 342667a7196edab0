"""What may leave a site: a list of frames, of fields with their types and shapes, and the one place that builds them.

A frame is its kind and then its fields, one behind the other, as raw little-endian bytes. It has neither names nor
lengths inside: those are in the list, which a person has approved. So two sites send frames of the same sizes whatever
their data are, every byte of a frame belongs to a listed field, and there is nowhere to put anything else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import MessageRefused, StateError

TYPES = {"u1": np.uint8, "u8": np.uint64, "f4": np.float32, "f8": np.float64}
KIND = 16  # bytes of a frame that say which it is
MOST = 1 << 31  # bytes of a frame


@dataclass(frozen=True)
class Field:
    """`type` as numpy has it: u1 (bytes), u8, f4 or f8. `about`: what it is, for whoever approves it."""

    name: str
    type: str
    shape: tuple[int, ...] = ()
    about: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(TYPES[self.type]).itemsize


@dataclass(frozen=True)
class Frame:
    """A kind of thing that leaves. `rate`: how often, in words."""

    kind: str
    fields: tuple[Field, ...]
    rate: str = ""

    @property
    def size(self) -> int:
        """Bytes of every such frame."""
        return KIND + sum(field.size for field in self.fields)


@dataclass(frozen=True)
class Listed:
    """The list. What is not on it cannot be sent."""

    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        """Raises: StateError for a list that is none."""
        names = [frame.kind for frame in self.frames]
        for frame in self.frames:
            fields = [field.name for field in frame.fields]
            sound = all(field.type in TYPES and min(field.shape, default=1) >= 0 for field in frame.fields)
            if not sound or len({*fields}) < len(fields) or len(frame.kind.encode()) > KIND or frame.size > MOST:
                raise StateError("this is no list of what may leave", found=frame.kind)
        if len({*names}) < len(names):
            raise StateError("this is no list of what may leave", found=", ".join(names))

    def frame(self, kind: str) -> Frame:
        """Raises: MessageRefused for a kind that is not listed."""
        for frame in self.frames:
            if frame.kind == kind:
                return frame
        raise MessageRefused("this may not leave: it is not listed", found=kind, expected=self.kinds)

    @property
    def kinds(self) -> str:
        return ", ".join(frame.kind for frame in self.frames)

    def build(self, kind: str, values: Mapping[str, Any]) -> bytes:
        """The frame of these values. Raises: MessageRefused for anything that the list does not say."""
        frame = self.frame(kind)
        if extra := sorted({*values} - {field.name for field in frame.fields}):
            raise MessageRefused(f"this may not leave: {kind} has no such field", found=", ".join(extra))
        pieces = [kind.encode().ljust(KIND, b"\0")]
        for field in frame.fields:
            if field.name not in values:
                raise MessageRefused(f"{kind} lacks a field", found=field.name)
            pieces.append(_packed(kind, field, values[field.name]))
        return b"".join(pieces)

    def read(self, data: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
        """A frame's kind and fields. Raises: MessageRefused for bytes that are not wholly a listed frame."""
        kind = bytes(data[:KIND]).rstrip(b"\0").decode("ascii", "replace")
        frame = self.frame(kind)
        if bytes(data[:KIND]) != kind.encode().ljust(KIND, b"\0") or len(data) != frame.size:
            raise MessageRefused(f"this is no {kind}", found=f"{len(data)} bytes", expected=f"{frame.size}")
        found, start = dict[str, NDArray[Any]](), KIND
        for field in frame.fields:
            raw = np.frombuffer(data, np.dtype(TYPES[field.type]).newbyteorder("<"), math.prod(field.shape), start)
            _check_finite(kind, field, raw)
            found[field.name] = raw.reshape(field.shape)
            start += field.size
        return kind, found

    # -- for people, and for what they sign ----------------------------------------------------------------------------

    def as_json(self) -> list[dict[str, Any]]:
        return json.loads(json.dumps([asdict(frame) for frame in self.frames]))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Any) -> Listed:
        """Raises: StateError."""
        try:
            return cls(
                tuple(
                    Frame(
                        str(one["kind"]),
                        tuple(
                            Field(str(f["name"]), str(f["type"]), tuple(map(int, f["shape"])), str(f["about"]))
                            for f in one["fields"]
                        ),
                        str(one["rate"]),
                    )
                    for one in value
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("this is no list of what may leave", found=str(error)) from None

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_rows(self) -> list[Sequence[str]]:
        """A row for each field, for a person."""
        rows: list[Sequence[str]] = [("what", "field", "type", "numbers", "bytes", "how often", "what it is")]
        for frame in self.frames:
            for number, field in enumerate(frame.fields):
                first = (frame.kind, frame.rate) if number == 0 else ("", "")
                size = f"{math.prod(field.shape):,}"
                rows.append((first[0], field.name, field.type, size, f"{field.size:,}", first[1], field.about))
        return rows


def _packed(kind: str, field: Field, value: Any) -> bytes:
    array = np.asarray(value)
    if field.type == "u1" and isinstance(value, (bytes, bytearray)):
        array = np.frombuffer(value, np.uint8)
    wanted = np.dtype(TYPES[field.type])
    if type(value) is int and wanted.kind == "u" and 0 <= value < 1 << 8 * wanted.itemsize:
        array = np.asarray(value, wanted)
    if array.shape != field.shape:
        raise MessageRefused(
            f"this may not leave: {field.name} of {kind} has another shape", found=array.shape, expected=field.shape
        )
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise MessageRefused(
            f"this may not leave: {field.name} of {kind} is of another type", found=array.dtype, expected=wanted
        )
    array = np.ascontiguousarray(array, wanted.newbyteorder("<"))
    _check_finite(kind, field, array)
    return array.tobytes()


def _check_finite(kind: str, field: Field, array: NDArray[Any]) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MessageRefused(f"{field.name} of {kind} is not finite")

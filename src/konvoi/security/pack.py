"""What a site is asked to consent to: one signed file of sources, plan, purpose, versions, and what may leave.

A zip with `manifest.json`, which holds the hash of every source, `signature.json` over the manifest's bytes, and the
sources. Its hash is the manifest's. Reading one never runs anything in it.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import hashlib
import io
import json
import math
import re
import tokenize
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from konvoi.errors import StateError
from konvoi.security.identity import is_signed, sign
from konvoi.security.leaving import Listed
from konvoi.units import hides, visible

FORMAT = 1
WEIGHTS, FROZEN = "initial", "frozen"  # what is in it beside what is read
LARGEST = 16 << 20  # bytes of all sources
MOST = 500  # sources
EPOCH = (1980, 1, 1, 0, 0, 0)  # of files in the zip: the same pack is the same bytes
# What a file that is none comes to: whole numbers beyond all floats, and lists in lists without end among it.
WRONG = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
    zipfile.BadZipFile,
)
NAME = re.compile(r"(?![0-9a-f]+(\.[0-9a-f]*)?\Z)[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")  # never what may be a hash


@dataclass(frozen=True)
class Pack:
    """A recipe that can be consented to."""

    name: str
    purpose: str  # in a person's words
    recipe: str  # which of the sources
    plan: Mapping[str, Any]  # the convoy's fields that differ from their defaults
    overrides: tuple[str, ...]  # of the job's fields
    requires: Mapping[str, str]  # versions, by distribution
    leaves: Listed
    ranges: Mapping[str, tuple[float, float]]  # settings that may change without new consent, and between what
    spec: Mapping[str, Any]  # what a sample looks like
    initial: str  # hash of the weights that all begin with, raw float32; of a survey, of what is asked first
    sources: Mapping[str, bytes] = field(repr=False)
    kind: str = "recipe"  # or "survey": sites tell what their data are like, and train nothing; or "flower": an app
    frozen: str = ""  # hash of the weights that nobody trains, as safetensors; "": there are none
    statistics: Mapping[str, Any] = field(default_factory=dict)  # by which samples are normalised: see `_check_numbers`

    def __post_init__(self) -> None:
        """Raises: StateError for a name that could not be a file's, or may be a hash."""
        if not NAME.fullmatch(self.name):
            expected = "small letters, digits, - and ., and not a hash's digits alone"
            raise StateError("this is no name of a pack", found=repr(self.name[:64]), expected=expected)

    def manifest(self) -> bytes:
        new = {name for name in ("frozen", "statistics") if not getattr(self, name)}  # as packs were without them
        left_out = {"leaves", "sources"} | new
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        files = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.sources.items())}
        told = {"format": FORMAT, **fields, "leaves": self.leaves.as_json(), "sources": files}
        return json.dumps(told, indent=1, sort_keys=True).encode()

    @property
    def hash(self) -> str:
        """What is approved."""
        return hashlib.sha256(self.manifest()).hexdigest()

    def write(self, path: Path, key: Path, initial: bytes, frozen: bytes = b"") -> None:
        """Signed with the key in that file; with the weights that all begin with, and those that stay as they are.

        Raises: StateError.
        """
        assert hashlib.sha256(initial).hexdigest() == self.initial
        try:
            _check(self)
        except WRONG as error:
            raise StateError("nobody would take this pack", found=str(error)) from None
        assert (hashlib.sha256(frozen).hexdigest() if frozen else "") == self.frozen
        public, signature = sign(key, self.manifest())
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            signed = json.dumps({"key": public, "signature": signature}).encode()
            for name, data in (("manifest.json", self.manifest()), ("signature.json", signed)):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
            for name, data in sorted(self.sources.items()):
                archive.writestr(zipfile.ZipInfo(f"sources/{name}", EPOCH), data)
            archive.writestr(zipfile.ZipInfo(WEIGHTS, EPOCH), initial, zipfile.ZIP_STORED)
            if frozen:
                archive.writestr(zipfile.ZipInfo(FROZEN, EPOCH), frozen, zipfile.ZIP_STORED)
        path.write_bytes(buffer.getvalue())

    def unpack(self, folder: Path) -> Path:
        """Write the sources below a folder; returns the recipe's path."""
        for name, data in self.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder / self.recipe


def read(path: Path) -> tuple[Pack, str]:
    """A pack and the public key that has signed it.

    Raises: StateError for what is none, is damaged or too large, was changed, or is signed by nobody.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if entry.filename not in (WEIGHTS, FROZEN)}
            if len(entries) > MOST + 2 or sum(entry.file_size for entry in entries.values()) > LARGEST:
                raise ValueError("it is too large")
            data = {name: archive.read(entry) for name, entry in entries.items()}
        told, signed = json.loads(data.pop("manifest.json")), json.loads(data.pop("signature.json"))
        sources = {name.removeprefix("sources/"): content for name, content in data.items()}
        pack = Pack(
            **{
                **{key: value for key, value in told.items() if key not in ("format", "sources")},
                "overrides": tuple(told["overrides"]),
                "ranges": {key: (float(low), float(high)) for key, (low, high) in told["ranges"].items()},
                "leaves": Listed.from_json(told["leaves"]),
                "sources": sources,
            }
        )
        _check(pack)
        manifest, public = pack.manifest(), str(signed["key"])
    except WRONG as error:
        raise StateError("this is no pack", found=f"{path}: {error}") from None
    if told["format"] != FORMAT:
        raise StateError("this pack is of another version of konvoi", found=f"format {told['format']}", expected=FORMAT)
    if json.loads(manifest) != told:
        raise StateError("the sources of this pack are not those that were signed", found=path)
    if pack.recipe not in sources:
        raise StateError("this pack has no recipe", found=pack.recipe)
    if not is_signed(public, str(signed["signature"]), manifest):
        raise StateError("this pack was changed after it was signed", found=path)
    return pack, public


def initial(path: Path, pack: Pack) -> bytes:
    """The weights that all begin with. Raises: StateError where they are not those that were signed."""
    return _weights(path, WEIGHTS, pack.initial)


def frozen(path: Path, pack: Pack) -> bytes:
    """The weights that nobody trains, as safetensors; b"" where there are none. Raises: StateError, as `initial`."""
    return _weights(path, FROZEN, pack.frozen) if pack.frozen else b""


def _weights(path: Path, name: str, hash: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise StateError("this pack has no weights to begin with", found=f"{path}: {error}") from None
    if hashlib.sha256(data).hexdigest() != hash:
        raise StateError("the weights in this pack are not those that were signed", found=path)
    return data


def difference(old: Pack | None, new: Pack) -> list[str]:
    """What is other than in the one that was approved last, line by line; everything, where there is none."""
    before = _texts(old) if old is not None else {}
    after = _texts(new)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        a, b = (texts.get(name, "").splitlines() for texts in (before, after))
        lines += difflib.unified_diff(a, b, f"approved/{name}", f"new/{name}", lineterm="")
    return [*map(visible, lines)]


def _texts(pack: Pack) -> dict[str, str]:
    told = json.loads(pack.manifest())
    del told["sources"]
    return {
        "manifest.json": json.dumps(told, indent=1, sort_keys=True),
        **{name: data.decode("utf-8", "backslashreplace") for name, data in pack.sources.items()},
    }


def _check(pack: Pack) -> None:
    """Raises: ValueError for what a person could not review, or could take for something else."""
    for name, data in pack.sources.items():
        _check_name(name)
        _check_source(name, data)
    if pack.statistics:
        _check_numbers(pack.statistics)


def _check_numbers(statistics: Mapping[str, Any]) -> None:
    """`columns`: by name `mean` and `std`, a number for each feature; `samples` that they are of; and `survey`: the
    hash of the pack that asked for them, or "".

    Raises: ValueError, and what else comes of a file that is none.
    """
    columns, samples, survey = (statistics[name] for name in ("columns", "samples", "survey"))
    known = {"columns", "samples", "survey"} == {*statistics} and all({"mean", "std"} == {*c} for c in columns.values())
    if not known or type(samples) is not int or not re.fullmatch("([0-9a-f]{64})?", survey):
        raise ValueError("what samples are normalised by is something else than means and deviations")
    for name, one in columns.items():
        numbers = [*one["mean"], *one["std"]]
        is_sound = all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        if not is_sound or len(one["mean"]) != len(one["std"]) or min(one["std"], default=-1) < 0:
            raise ValueError(f"{name} cannot be normalised by these numbers")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    is_wrong = not name or path.is_absolute() or ".." in path.parts or "\\" in name or name.endswith("/")
    if is_wrong or any(map(hides, name)):
        raise ValueError(f"{name!r} is no name of a source")


def _check_source(name: str, data: bytes) -> None:
    """That what is shown is what Python reads: nothing that a screen hides, and no other encoding (PEP 263), in which
    a comment may hold a new line."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode("utf-8-sig")
    except (SyntaxError, UnicodeDecodeError):
        encoding, text = "", ""
    if not encoding or codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
        raise ValueError(f"{name} is not in UTF-8")
    if hidden := [one for one in {*text.replace("\r\n", "\n")} if one not in "\n\t" and hides(one)]:
        raise ValueError(f"{name} has a character that is not shown as what it is: {min(hidden)!r}")

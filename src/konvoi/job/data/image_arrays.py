"""Images from an .npz: its arrays, without doubles, as memory-mapped files in the cache."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError
from konvoi.job.data.cache import cached
from konvoi.job.data.doubles import digest, without_doubles
from konvoi.job.data.positions import Ints
from konvoi.job.data.tensors import held_out, labels_of
from konvoi.values import DataSpec, Splits

Array: TypeAlias = NDArray[Any]
Part: TypeAlias = tuple[Array, Ints]  # images (n, h, w) or (n, h, w, c), labels (n,)


@dataclass(frozen=True)
class StoredImages:
    """A source over two .npy files: images as they were stored, and labels."""

    images_path: str
    labels_path: str
    deterministic: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": scaled(self._images[index]), "labels": np.array(self._labels[index])}

    def __getitems__(self, indices: Ints) -> dict[str, Any]:
        return {"inputs": scaled(self._images[indices], batched=True), "labels": self._labels[indices]}

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, (self.images_path, self.labels_path)  # never the mapped arrays

    @cached_property
    def _images(self) -> Array:
        return np.asarray(np.load(self.images_path, mmap_mode="r"))

    @cached_property
    def _labels(self) -> Array:
        return np.asarray(np.load(self.labels_path))


def prepare_npz(path: str, holdout: float, cache_dir: str | Path | None) -> Splits:
    """Raises: DataError where the file is no .npz, or its arrays are no labelled images."""

    def build(folder: Path) -> dict[str, Any]:
        parts = _read(path)
        if list(parts) == ["train"] and holdout:
            rows = dict(zip(("train", "val"), held_out(len(parts["train"][1]), holdout), strict=True))
            parts = {name: (parts["train"][0][these], parts["train"][1][these]) for name, these in rows.items()}
        rows, doubles = without_doubles(
            {name: [digest(image.tobytes()) for image in part[0]] for name, part in parts.items()}
        )
        parts = {name: (part[0][rows[name]], part[1][rows[name]]) for name, part in parts.items()}
        for name, (images, labels) in parts.items():
            np.save(folder / f"{name}_images.npy", images)
            np.save(folder / f"{name}_labels.npy", labels)
        num_classes = 1 + max(int(labels.max(initial=0)) for _, labels in parts.values())
        counts = {name: np.bincount(labels, minlength=num_classes).tolist() for name, (_, labels) in parts.items()}
        return {"shape": scaled(parts["train"][0][0]).shape, "samples_per_class": counts, "doubles": doubles}

    status = os.stat(path)
    folder, meta = cached("images", [path, status.st_size, status.st_mtime_ns, holdout], build, cache_dir)
    counts = meta["samples_per_class"]
    sources = {
        name: StoredImages(str(folder / f"{name}_images.npy"), str(folder / f"{name}_labels.npy")) for name in counts
    }
    spec = DataSpec(num_classes=len(counts["train"]), input_shape=tuple(meta["shape"]))
    description = {"source": path, "samples_per_class": counts, "doubles": meta["doubles"]}
    return Splits(sources["train"], sources.get("val", sources.get("test")), spec, description)


def scaled(pixels: Array, *, batched: bool = False) -> NDArray[np.float32]:
    """(h, w) or (h, w, c) as stored, behind a batch dim if `batched`, to float32 (c, h, w) in [0, 1]."""
    pixels = pixels[..., None] if pixels.ndim == 2 + batched else pixels
    pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
    if pixels.dtype.kind == "u":
        return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)
    return pixels.astype(np.float32)


def _read(path: str) -> dict[str, Part]:
    try:
        with open(path, "rb") as file, np.load(file) as archive:  # never unpickles
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an .npz", found=error, expected="an archive of plain arrays"
        ) from error
    parts = {name: _part(name, f"{name}_", arrays) for name in ("train", "val", "test") if f"{name}_images" in arrays}
    if "images" in arrays and not parts:
        parts = {"train": _part("the file", "", arrays)}
    if "train" not in parts:
        expected = "images and labels, or train_images and train_labels"
        raise DataError(f"{path} has no training images", found=", ".join(arrays) or "nothing", expected=expected)
    return parts


def _part(name: str, prefix: str, arrays: Mapping[str, Array]) -> Part:
    images = arrays[f"{prefix}images"]
    if f"{prefix}labels" not in arrays:
        raise DataError(f"the images of {name} have no labels", found=", ".join(arrays), expected=f"{prefix}labels")
    labels = labels_of(arrays[f"{prefix}labels"])
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"the images of {name} have another layout", found=images.shape, expected="(n, h, w) or (n, h, w, c)"
        )
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{name} needs one label per image", found=f"{len(images)} images, {len(labels)} labels")
    if images.dtype.kind not in "uf" or (images.dtype.kind == "f" and not 0 <= images.min() <= images.max() <= 1):
        found = f"{images.dtype} from {images.min()} to {images.max()}"
        raise DataError(
            f"the images of {name} have another scale", found=found, expected="unsigned, or floats in [0, 1]"
        )
    return images, labels

"""Images from a folder: the one file that knows PIL (extra: images). Files are decoded when they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError, MissingExtra
from konvoi.job.data.doubles import digest, without_doubles
from konvoi.job.data.image_arrays import scaled
from konvoi.job.data.tensors import held_out
from konvoi.values import DataSpec, Splits

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
VALID_FOLDERS = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class ImageFiles:
    """A source over image files. `mode` is PIL's: "L" for one channel, "RGB" for three."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    size: tuple[int, int]  # (h, w)
    mode: str
    deterministic: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        """Raises: DataError where the file is no image any more."""
        pixels = _decoded(self.paths[index], self.size, self.mode)
        return {"inputs": scaled(pixels), "labels": np.array(self.labels[index], np.int64)}


def prepare_folder(path: str, size: tuple[int, int] | None, holdout: float) -> Splits:
    """Raises: DataError where there are no classes, no images, or images of different sizes and no `size`."""
    parts = {"train": path}
    if os.path.isdir(os.path.join(path, "train")):
        parts = {name: os.path.join(path, name) for name in ("train", *VALID_FOLDERS)}
        parts = {name: folder for name, folder in parts.items() if os.path.isdir(folder)}
    classes = _classes(parts["train"])
    files = {name: _labelled(folder, classes) for name, folder in parts.items()}
    if list(files) == ["train"] and holdout:
        rows = dict(zip(("train", "val"), held_out(len(files["train"]), holdout), strict=True))
        files = {name: [files["train"][row] for row in these] for name, these in rows.items()}
    stay, doubles = without_doubles({name: [_digest(file) for file, _ in part] for name, part in files.items()})
    files = {name: [part[row] for row in stay[name]] for name, part in files.items()}
    every = [file for part in files.values() for file, _ in part]
    sizes, modes = zip(*(_look(file) for file in every), strict=True)
    mode = "L" if set(modes) <= {"1", "L"} else "RGB"
    size = size or _one_size(every, sizes)
    sources = {name: _source(part, size, mode) for name, part in files.items()}
    valid = next((sources[name] for name in VALID_FOLDERS if name in sources and len(sources[name])), None)
    counts = {name: np.bincount(source.labels, minlength=len(classes)).tolist() for name, source in sources.items()}
    description = {"source": path, "classes": classes, "samples_per_class": counts, "doubles": doubles}
    spec = DataSpec(num_classes=len(classes), input_shape=(1 if mode == "L" else 3, *size))
    return Splits(sources["train"], valid, spec, description)


def _source(files: list[tuple[str, int]], size: tuple[int, int], mode: str) -> ImageFiles:
    return ImageFiles(tuple(file for file, _ in files), tuple(label for _, label in files), size, mode)


def _classes(folder: str) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folders", found="files only", expected="one folder for each class")
    return names


def _labelled(folder: str, classes: list[str]) -> list[tuple[str, int]]:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has classes that train has not", found=", ".join(unknown), expected=", ".join(classes)
        )
    files = []
    for label, name in enumerate(classes):
        for root, folders, names in os.walk(os.path.join(folder, name)):
            folders.sort()
            files += [(os.path.join(root, file), label) for file in sorted(names) if _is_image(file)]
    if not files:
        raise DataError(f"there are no images in {folder}", expected=", ".join(sorted(SUFFIXES)))
    return files


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return digest(file.read())
    except OSError as error:
        raise DataError(f"{path} cannot be read", found=error.strerror, expected="a readable image") from error


def _one_size(paths: list[str], sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    other = next((place for place, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        found = f"{sizes[0]} in {paths[0]}, {sizes[other]} in {paths[other]}"
        raise DataError(
            "the images have different sizes", found=found, expected="one size", hint="pass size=(height, width)"
        )
    return sizes[0]


def _look(path: str) -> tuple[tuple[int, int], str]:
    """((h, w), mode) from the file's header."""
    with _opened(path) as image:
        return (image.height, image.width), image.mode


def _decoded(path: str, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    with _opened(path) as image:
        try:
            pixels = image.convert(mode)
        except OSError as error:  # a truncated file shows itself only here
            raise DataError(f"{path} cannot be decoded", found=error, expected="a whole image") from error
        if (pixels.height, pixels.width) != size:
            pixels = pixels.resize((size[1], size[0]))
        return np.asarray(pixels, dtype=np.uint8)


def _opened(path: str) -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtra("pillow", "images", "a folder of images") from error
    try:
        return Image.open(path)
    except OSError as error:
        raise DataError(f"{path} is no image", found=error, expected=", ".join(sorted(SUFFIXES))) from error

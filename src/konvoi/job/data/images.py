"""`data.images`: an .npz of arrays, or a folder with a folder for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from konvoi.errors import DataError, did_you_mean
from konvoi.job.data.tensors import check_holdout
from konvoi.values import Splits


@dataclass(frozen=True)
class Images:
    """Images with one label each."""

    path: str | Path
    size: tuple[int, int] | None = None
    holdout: float = 0.1
    cache_dir: str | Path | None = None

    def prepare(self) -> Splits:
        """Raises: DataError where the path is missing, empty or no images; MissingExtra for a folder without PIL."""
        path = os.path.abspath(os.path.expanduser(self.path))
        if os.path.isdir(path):
            from konvoi.job.data.image_files import prepare_folder

            return prepare_folder(path, self.size, self.holdout)
        if os.path.isfile(path):
            from konvoi.job.data.image_arrays import prepare_npz

            return prepare_npz(path, self.holdout, self.cache_dir)
        raise missing(path, "an .npz file, or a folder with a folder for each class")


def images(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    holdout: float = 0.1,
    cache_dir: str | Path | None = None,
) -> Images:
    """Images from an .npz (`images`, `labels`; or `train_images`, `train_labels`, `val_images`, ... as MedMNIST has
    them) or from a folder with a folder for each class, below `train/` and `val/` where there are such.

    A sample is {"inputs": float32 (channels, h, w) in [0, 1], "labels": int64 ()}. Images that are also in a later
    part (train, val, test) are left out. Without a held-out part a random share `holdout` is held out. `size=(h, w)`
    resizes the files of a folder. Raises: DataError for values that cannot be; files are looked at by `prepare`.

    >>> images("xrays.npz").holdout
    0.1
    """
    check_holdout(holdout)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError("size is the height and width of an image", found=size, expected="for example (64, 64)")
    return Images(path, size, holdout, cache_dir)


def missing(path: str, expected: str) -> DataError:
    """Nothing is at `path`: with the nearest name of its folder as a hint."""
    folder, name = os.path.split(path)
    neighbours = os.listdir(folder) if os.path.isdir(folder) else []
    near = did_you_mean(name, neighbours) if neighbours else ""
    hint = near if near.startswith("did you mean") else ""
    return DataError(f"there is no {path}", found="nothing there", expected=expected, hint=hint)

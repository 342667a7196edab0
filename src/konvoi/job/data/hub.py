"""`data.hub`: data sets of the `datasets` library, the one file that knows it (extra: hub). Nothing is downloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from konvoi.errors import DataError, MissingExtra, did_you_mean
from konvoi.job.data.image_arrays import scaled
from konvoi.job.data.positions import Ints
from konvoi.job.data.tensors import check_holdout, held_out
from konvoi.job.data.tokens import Documents, Tokenizing, prepare_tokens
from konvoi.values import DataSpec, Splits

Columns: TypeAlias = Mapping[str, str] | Sequence[str]
VALID_NAMES = ("validation", "valid", "val", "test")
OUR_NAMES = {"label": "labels", "image": "inputs", "img": "inputs", "target": "targets"}


@dataclass(frozen=True, eq=False)
class Rows:
    """A source over a `datasets.Dataset`; `columns` gives the column of each key of a sample."""

    dataset: Any
    columns: Mapping[str, str]
    images: frozenset[str] = frozenset()  # keys whose column holds images
    deterministic: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[int(index)]
        return {key: self._value(key, row[column]) for key, column in self.columns.items()}

    def __getitems__(self, indices: Ints) -> dict[str, Any]:
        """Raises: DataError where the rows differ in shape."""
        table = self.dataset[indices.tolist()]
        return {key: self._stacked(key, table[column]) for key, column in self.columns.items()}

    def _value(self, key: str, value: Any) -> Any:
        array = np.asarray(value)
        if key in self.images:
            return scaled(array)
        return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)

    def _stacked(self, key: str, values: Any) -> Any:
        try:
            return np.stack([self._value(key, value) for value in values])
        except ValueError as error:
            shapes = ", ".join(sorted({str(np.shape(value)) for value in values}))
            hint = "pad or crop with dataset.map, or resize the images"
            raise DataError(
                f"the rows of '{key}' differ in shape", found=shapes, expected="one shape", hint=hint
            ) from error


@dataclass(frozen=True, eq=False)
class Hub:
    """A data set of the hub library, by its columns or as text."""

    dataset: Any
    columns: Columns | None = None
    text_column: str | None = None
    how: Tokenizing = dataclasses.field(default_factory=Tokenizing)
    holdout: float = 0.05
    cache_dir: str | Path | None = None

    def prepare(self) -> Splits:
        """Raises: DataError where a column is missing or cannot be used."""
        train, valid = _parts(self.dataset, self.holdout)
        named = [self.text_column] if self.text_column else _named(self.columns).values()
        for column in named:
            if column not in train.column_names:
                hint = did_you_mean(column, train.column_names)
                raise DataError("there is no such column", found=column, expected=train.column_names, hint=hint)
        if self.text_column:
            return self._prepare_text(train, valid, self.text_column)
        return _prepare_columns(train, valid, _named(self.columns) or _guessed(train))

    def _prepare_text(self, train: Any, valid: Any, column: str) -> Splits:
        parts = [part for part in (train, valid) if part is not None]
        splits = prepare_tokens(
            _documents(train, column),
            _documents(valid, column) if valid is not None else None,
            self.how,
            identity=[_fingerprint(part, column) for part in parts],
            cache_dir=self.cache_dir,
        )
        return dataclasses.replace(splits, description={"source": f"column {column}", **splits.description})


def hub(
    dataset: Any,
    *,
    columns: Columns | None = None,
    text_column: str | None = None,
    seq_len: int = 256,
    tokenizer: str = "bytes",
    vocab_size: int = 4096,
    holdout: float = 0.05,
    cache_dir: str | Path | None = None,
) -> Hub:
    """A `datasets.Dataset`, or a `DatasetDict` with train and validation (else test); else `holdout` of the rows.

    With `text_column` each row is a document, tokenized as by `data.text`. Otherwise `columns` gives the column of
    each key, {"inputs": "image", "labels": "label"}, or names columns that are keys already; without it, every column
    of numbers or images is taken. Raises: DataError for values that cannot be; columns are looked at by `prepare`.

    >>> import datasets
    >>> texts = datasets.Dataset.from_dict({"text": ["to be or not to be"] * 20})
    >>> spoken = hub(texts, text_column="text", seq_len=8)
    """
    check_holdout(holdout)
    if columns is not None and text_column is not None:
        raise DataError("a row is either columns or text", found="columns= and text_column=", expected="one of them")
    return Hub(dataset, columns, text_column, Tokenizing(seq_len, tokenizer, vocab_size), holdout, cache_dir)


def is_hub_data(data: object) -> bool:
    """Whether `hub` takes it; asks only where somebody has imported the library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, (library.Dataset, library.DatasetDict))


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "hub", "data.hub") from error
    return datasets


def _parts(dataset: Any, holdout: float) -> tuple[Any, Any]:
    """(train, valid or None), as Datasets."""
    library = _library()
    if isinstance(dataset, library.DatasetDict):
        if "train" not in dataset:
            raise DataError("the DatasetDict has no training part", found=list(dataset), expected="train")
        train, valid = dataset["train"], next((dataset[name] for name in VALID_NAMES if name in dataset), None)
    elif isinstance(dataset, library.Dataset):
        train, valid = dataset, None
    else:
        hint = "konvoi.data.of takes an IterableDataset"
        found = f"{type(dataset).__module__}.{type(dataset).__name__}"
        raise DataError(
            "hub takes data of the datasets library", found=found, expected="Dataset or DatasetDict", hint=hint
        )
    if not len(train):
        raise DataError("the data set is empty", found="0 rows", expected="at least one")
    if valid is None and holdout:
        rows, held = held_out(len(train), holdout)
        train, valid = train.select(rows), train.select(held) if len(held) else None
    return train, valid


def _named(columns: Columns | None) -> dict[str, str]:
    if columns is None:
        return {}
    return dict(columns) if isinstance(columns, Mapping) else {column: column for column in columns}


def _guessed(dataset: Any) -> dict[str, str]:
    """Every column of numbers or images, under our name for it."""
    image = _library().Image
    row = dataset.with_format("numpy")[0]
    columns = {
        OUR_NAMES.get(column, column): column
        for column, feature in dataset.features.items()
        if isinstance(feature, image) or np.asarray(row[column]).dtype.kind in "biuf"
    }
    if not columns:
        found = ", ".join(f"{name}: {feature}" for name, feature in dataset.features.items())
        raise DataError("no column holds numbers", found=found, hint="text_column= takes a column of text")
    return columns


def _prepare_columns(train: Any, valid: Any, columns: Mapping[str, str]) -> Splits:
    library = _library()
    images = frozenset(key for key, column in columns.items() if isinstance(train.features[column], library.Image))
    sources = [
        None if part is None else Rows(_formatted(part), columns, images, _is_plain(part)) for part in (train, valid)
    ]
    assert sources[0] is not None
    for column in columns.values():
        if np.asarray(sources[0].dataset[0][column]).dtype.kind not in "biuf":
            hint = "text_column= takes a column of text"
            raise DataError(f"column '{column}' does not hold numbers", found=train.features[column], hint=hint)
    first = sources[0][0]
    label = train.features[columns["labels"]] if "labels" in columns else None
    spec = DataSpec(
        num_classes=label.num_classes if isinstance(label, library.ClassLabel) else None,
        input_shape=first["inputs"].shape if "inputs" in first else None,
        seq_len=len(first["input_ids"]) - 1 if "input_ids" in first else None,
    )
    left_out = [column for column in train.column_names if column not in columns.values()]
    counts = {"train_samples": len(train), "valid_samples": 0 if valid is None else len(valid)}
    description = {"source": "datasets", "columns": dict(columns), "left_out": left_out, **counts}
    return Splits(sources[0], sources[1], spec, description)


def _is_plain(dataset: Any) -> bool:
    return bool(dataset.format["type"] != "custom")  # with_transform may draw at random


def _formatted(dataset: Any) -> Any:
    return dataset if dataset.format["type"] in ("numpy", "torch", "custom") else dataset.with_format("numpy")


def _texts(dataset: Any, column: str) -> Iterator[str]:
    """Rows without text are left out."""
    for table in dataset.with_format(None).select_columns([column]).iter(batch_size=1000):
        for text in table[column]:
            if text is not None and not isinstance(text, str):
                raise DataError(f"column '{column}' is no text", found=type(text).__name__, expected="str")
            if text:
                yield text


def _documents(dataset: Any, column: str) -> Documents:
    return lambda: (text.encode(errors="surrogateescape") for text in _texts(dataset, column))


def _fingerprint(dataset: Any, column: str) -> str:
    """Of the text itself: the library's own fingerprints change with how a data set was made."""
    content = hashlib.blake2b(digest_size=16)
    for text in _texts(dataset, column):
        data = text.encode(errors="surrogateescape")
        content.update(len(data).to_bytes(8, "big"))
        content.update(data)
    return content.hexdigest()

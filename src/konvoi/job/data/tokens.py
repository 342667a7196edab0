"""Tokens on disk, and the windows of them that are samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from konvoi.errors import DataError, did_you_mean
from konvoi.job.data.cache import cached
from konvoi.job.data.positions import Ints
from konvoi.job.data.tokenizer import Tokenizer, load_tokenizer
from konvoi.values import DataSpec, Splits

Documents: TypeAlias = Callable[[], Iterable[bytes]]  # called once for each time that they are read


@dataclass(frozen=True)
class Tokenizing:
    """How text becomes samples: `tokenizer` is "bytes", "bpe" (learned from the training part), or a JSON file."""

    seq_len: int = 256
    tokenizer: str = "bytes"
    vocab_size: int = 4096

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise DataError("seq_len counts tokens", found=self.seq_len, expected="at least 1")
        if self.tokenizer not in ("bytes", "bpe") and not self.tokenizer.endswith(".json"):
            raise DataError(
                "there is no such tokenizer",
                found=self.tokenizer,
                expected="'bytes', 'bpe', or a tokenizer's JSON file",
                hint=did_you_mean(self.tokenizer, ("bytes", "bpe")),
            )
        if self.tokenizer == "bpe" and self.vocab_size < 257:
            raise DataError(
                "vocab_size is too small", found=self.vocab_size, expected=">= 257: the bytes and an end of text"
            )

    def absolute(self) -> str:
        return os.path.abspath(self.tokenizer)

    def identity(self) -> list[Any]:
        """What the tokens depend on, beside the text."""
        if self.tokenizer == "bpe":
            return ["bpe", self.vocab_size]
        if self.tokenizer == "bytes":
            return ["bytes"]
        try:
            return ["file", hashlib.sha256(Path(self.tokenizer).read_bytes()).hexdigest()]
        except OSError as error:
            raise DataError("the tokenizer cannot be read", found=error, expected=self.tokenizer) from error


@dataclass(frozen=True)
class Windows:
    """A source: sample i is the tokens [i * seq_len, (i + 1) * seq_len] of a file, both ends included.

    Windows share one token, so that each token but the first is predicted once.
    """

    path: str
    dtype: str
    num_tokens: int
    seq_len: int
    deterministic: ClassVar[bool] = True

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.seq_len

    def __getitem__(self, index: int) -> dict[str, Ints]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index % len(self) * self.seq_len
        return {"input_ids": self._tokens[start : start + self.seq_len + 1].astype(np.int64)}

    def __getitems__(self, indices: Ints) -> dict[str, Ints]:
        places = indices[:, None] * self.seq_len + np.arange(self.seq_len + 1)  # (batch, seq_len + 1)
        return {"input_ids": self._tokens[places].astype(np.int64)}

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self.path, self.dtype, self.num_tokens, self.seq_len)  # never the mapped tokens

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        mapped = np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.num_tokens,))
        return np.asarray(mapped)  # the same pages; a plain array is read with less overhead


def prepare_tokens(
    train: Documents, valid: Documents | None, how: Tokenizing, *, identity: Any, cache_dir: str | Path | None
) -> Splits:
    """Tokenize both parts into the cache, unless it has them, and cut them into windows.

    Raises: DataError where a part is too short for one window.
    """

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = _make_tokenizer(how, train, folder)
        dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        parts = {"train": train} if valid is None else {"train": train, "valid": valid}
        written = {name: _write(folder / f"{name}.bin", part(), tokenizer, dtype) for name, part in parts.items()}
        return {"dtype": dtype, "vocab_size": tokenizer.vocab_size, "parts": written}

    folder, meta = cached("text", [identity, how.identity()], build, cache_dir)
    windows = {name: _windows(name, folder, meta, how.seq_len) for name in meta["parts"]}
    counted = meta["parts"].get("valid", meta["parts"]["train"])
    spec = DataSpec(
        vocab_size=meta["vocab_size"],
        seq_len=how.seq_len,
        # A separator counts as one byte: with bytes the figure is exactly 1.
        bytes_per_token=(counted["bytes"] + counted["documents"]) / counted["tokens"],
        tokenizer={"bytes": "bytes", "bpe": str(folder / "tokenizer.json")}.get(how.tokenizer, how.absolute()),
    )
    figures = {f"{name}_{what}": count for name, part in meta["parts"].items() for what, count in part.items()}
    description = {"tokenizer": how.tokenizer, "separator": "one token after each document", **figures}
    return Splits(windows["train"], windows.get("valid"), spec, description)


def _make_tokenizer(how: Tokenizing, train: Documents, folder: Path) -> Tokenizer:
    if how.tokenizer == "bpe":
        from konvoi.job.data import bpe

        return bpe.train(train(), how.vocab_size, folder / "tokenizer.json")
    return load_tokenizer(how.tokenizer)


def _write(path: Path, documents: Iterable[bytes], tokenizer: Tokenizer, dtype: str) -> dict[str, int]:
    """One document after the other, each with an end of text; returns the counts."""
    end = np.array([tokenizer.end_of_text], dtype=dtype).tobytes()
    counts = {"documents": 0, "bytes": 0, "tokens": 0}

    def counting() -> Iterable[bytes]:
        for document in documents:
            counts["documents"] += 1
            counts["bytes"] += len(document)
            yield document

    with path.open("wb") as file:
        for tokens in tokenizer.encode_documents(counting()):
            file.write(tokens.astype(dtype).tobytes())
            file.write(end)
            counts["tokens"] += len(tokens) + 1
    return counts


def _windows(name: str, folder: Path, meta: dict[str, Any], seq_len: int) -> Windows:
    num_tokens = meta["parts"][name]["tokens"]
    if num_tokens < seq_len + 1:
        part = "held-out" if name == "valid" else "training"
        hint = f"seq_len={max(1, num_tokens - 1)} at most" + (", or another holdout" if name == "valid" else "")
        raise DataError(
            f"the {part} text is too short for one sample",
            found=f"{num_tokens} tokens",
            expected=f"at least {seq_len + 1}: seq_len={seq_len}, and the token after it",
            hint=hint,
        )
    return Windows(str(folder / f"{name}.bin"), meta["dtype"], num_tokens, seq_len)

"""`data.text`: files of text as token windows, with whole files held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from konvoi.job.data.corpus import Piece, TextSource, find, hold_out
from konvoi.job.data.tensors import check_holdout
from konvoi.job.data.tokens import Documents, Tokenizing, prepare_tokens
from konvoi.values import Splits


@dataclass(frozen=True)
class Text:
    """Files of text."""

    source: TextSource = "stdlib"
    how: Tokenizing = field(default_factory=Tokenizing)
    holdout: float = 0.05
    cache_dir: str | Path | None = None

    def prepare(self) -> Splits:
        """Raises: DataError where a file is missing, empty or unreadable, or all of them are too short."""
        pieces = find(self.source)
        train, valid = hold_out(pieces, self.holdout) if self.holdout else (pieces, [])
        splits = prepare_tokens(
            _documents(train),
            _documents(valid) if valid else None,
            self.how,
            identity=[
                [(piece.path, piece.start, piece.stop, piece.mtime_ns) for piece in part] for part in (train, valid)
            ],
            cache_dir=self.cache_dir,
        )
        source = self.source if isinstance(self.source, str) else str(self.source)
        cut = [piece.name for piece in valid if piece.start]
        held_out = f"the end of {cut[0]}" if cut else f"{len(valid)} whole files"
        described = {"source": source, "files": len(pieces), "held_out": held_out, **splits.description}
        return dataclasses.replace(splits, description=described)


def text(
    source: TextSource = "stdlib",
    *,
    seq_len: int = 256,
    tokenizer: str = "bytes",
    vocab_size: int = 4096,
    holdout: float = 0.05,
    cache_dir: str | Path | None = None,
) -> Text:
    """Text from "stdlib" (the source of Python's standard library), a file, a folder, a glob, or a list of these.

    A sample is {"input_ids": int64 (seq_len + 1,)}. `tokenizer` is "bytes" (257 tokens), "bpe" (`vocab_size` tokens,
    learned from the training files), or a tokenizer's JSON file. Whole files, about `holdout` of the bytes, are kept
    for validation; of a single file, its end. Tokens are kept in `cache_dir` ($KONVOI_CACHE, ~/.cache/konvoi).
    Raises: DataError for values that cannot be; missing files are noticed by `prepare`.
    """
    check_holdout(holdout)
    return Text(source, Tokenizing(seq_len, tokenizer, vocab_size), holdout, cache_dir)


def _documents(pieces: Sequence[Piece]) -> Documents:
    return lambda: (piece.read() for piece in pieces)

"""Text to token ids and back: bytes need nothing, byte pairs come from `tokenizers` (bpe.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """Token ids are in [0, vocab_size); `end_of_text` separates documents."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Separators and bytes that are no text are left out or replaced; never an error."""
        ...

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        """The tokens of each document, without a separator."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """A token is a byte; 256 is the end of a text.

    >>> ByteTokenizer().encode("né"), ByteTokenizer().decode([110, 195, 169, 256])
    ([110, 195, 169], 'né')
    """

    vocab_size: int = 257
    end_of_text: int = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode(errors="surrogateescape"))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        return (np.frombuffer(document, dtype=np.uint8) for document in documents)


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """What `DataSpec.tokenizer` names: "bytes", or the JSON file of a tokenizer.

    Raises: DataError where the file is missing or no tokenizer, MissingExtra without `tokenizers`.
    """
    if name_or_path == "bytes":
        return ByteTokenizer()
    from konvoi.job.data.bpe import load

    return load(Path(name_or_path))

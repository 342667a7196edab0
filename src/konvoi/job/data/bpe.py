"""Byte-pair encoding: the one file that knows `tokenizers` (extra: text)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from konvoi.errors import DataError, MissingExtra
from konvoi.job.data.tokenizer import Tokens

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")  # of tokenizers made elsewhere
SMALLEST_VOCABULARY = 257  # every byte, and the end of a text
DOCUMENTS_AT_ONCE = 256  # enough for the library's threads, few enough for memory


@dataclass(frozen=True, eq=False)
class BytePairs:
    """Byte-level, so that any text can be written and read back."""

    inner: tokenizers.Tokenizer
    end_of_text: int

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.inner.decode([int(token) for token in tokens]))

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        """Bytes that are no UTF-8 become U+FFFD."""
        remaining = iter(documents)
        while some := [document.decode(errors="replace") for document in islice(remaining, DOCUMENTS_AT_ONCE)]:
            for encoding in self.inner.encode_batch_fast(some, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.uint32)


def train(documents: Iterable[bytes], vocab_size: int, path: Path) -> BytePairs:
    """Learn `vocab_size` tokens (fewer where the text is short) and write them to `path`.

    Gage, "A New Algorithm for Data Compression", 1994; on bytes: Radford et al., 2019, section 2.2.
    """
    library = _library()
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((document.decode(errors="replace") for document in documents), trainer)
    inner.save(str(path))
    return load(path)


def load(path: Path) -> BytePairs:
    """Raises: DataError where the file is missing, no tokenizer, or has no token that ends a text."""
    library = _library()
    if not path.is_file():
        raise DataError("there is no such tokenizer", found=path, expected="'bytes', or the JSON file of a tokenizer")
    try:
        inner = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            "the file is no tokenizer", found=f"{path}: {error}", expected="JSON of `tokenizers`"
        ) from error
    ends = [inner.token_to_id(name) for name in KNOWN_ENDS if inner.token_to_id(name) is not None]
    if not ends:
        raise DataError("the tokenizer has no token that ends a text", found=path, expected=" or ".join(KNOWN_ENDS))
    return BytePairs(inner, ends[0])


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise MissingExtra("tokenizers", "text", "a tokenizer other than 'bytes'") from error
    return tokenizers

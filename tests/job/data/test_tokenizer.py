import pytest

from konvoi.errors import DataError
from konvoi.job.data.tokenizer import ByteTokenizer, load_tokenizer


def test_bytes_come_back_as_they_were():
    tokenizer = load_tokenizer("bytes")
    assert isinstance(tokenizer, ByteTokenizer)
    for text in ("", "def f():\n\treturn 1\r\n", "naïve 日本 🚚"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokens.tolist() for tokens in tokenizer.encode_documents([b"\xff\x00", b""])] == [[255, 0], []]


def test_separators_are_left_out_and_bytes_that_are_no_text_replaced():
    assert ByteTokenizer().decode([65, 256, 255, 66]) == "A\N{REPLACEMENT CHARACTER}B"


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="there is no such tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")

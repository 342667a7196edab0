import subprocess
import sys

import pytest

from konvoi.errors import DataError, MissingExtra
from konvoi.job.data import bpe

pytest.importorskip("tokenizers")
DOCUMENTS = [f"def function_{number}(argument):\n    return {number} + argument\n".encode() for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe.train(DOCUMENTS, 320, tmp_path_factory.mktemp("bpe") / "tokenizer.json")


def test_any_text_comes_back_as_it_was(tokenizer):
    for text in ("", "def f():\n\treturn 1\r\n", "  naïve 日本 🚚  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("return argument")) < len("return argument") / 2


def test_ids_are_below_the_vocabulary_size_and_separators_are_not_shown(tokenizer):
    assert 257 < tokenizer.vocab_size <= 320
    encoded = list(tokenizer.encode_documents([*DOCUMENTS, b"\xff\x00"]))
    assert len(encoded) == len(DOCUMENTS) + 1
    assert max(tokens.max() for tokens in encoded) < tokenizer.vocab_size
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text]) == "a"


def test_learning_gives_the_same_file_in_another_process(tokenizer, tmp_path):
    program = "import sys; from pathlib import Path; from konvoi.job.data import bpe\n"
    program += f"bpe.train({DOCUMENTS!r}, 320, Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "other.json")], check=True, env={"PYTHONPATH": "src"})
    bpe.train(DOCUMENTS, 320, tmp_path / "here.json")
    assert (tmp_path / "other.json").read_bytes() == (tmp_path / "here.json").read_bytes()


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(DataError, match="the file is no tokenizer"):
        bpe.load(tmp_path / "wrong.json")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match="tokenizers") as caught:
        bpe.load(tmp_path / "tokenizer.json")
    assert "pip install 'konvoi[text]'" in str(caught.value)

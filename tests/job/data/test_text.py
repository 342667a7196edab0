import math
import pickle
import time

import numpy as np
import pytest

from konvoi.errors import DataError
from konvoi.job.data.text import text
from konvoi.job.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"file {number} says " + "something " * (10 + number % 7))
    return folder


def decoded(windows, tokenizer="bytes"):
    tokens = np.fromfile(windows.path, dtype=windows.dtype)
    ids = load_tokenizer(tokenizer)
    documents = np.split(tokens, np.flatnonzero(tokens == ids.end_of_text) + 1)[:-1]
    return [ids.decode(document.tolist()) for document in documents]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_document_is_whole_and_in_one_part(corpus, tmp_path, tokenizer):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    data = text(corpus, seq_len=32, tokenizer=tokenizer, vocab_size=300, holdout=0.1, cache_dir=tmp_path)
    splits = data.prepare()
    train, valid = decoded(splits.train, splits.spec.tokenizer), decoded(splits.valid, splits.spec.tokenizer)
    assert sorted(train + valid) == sorted(path.read_text() for path in corpus.iterdir())
    assert 0.05 < len(valid) / 60 < 0.15
    assert splits.description["train_documents"] == len(train)
    assert splits.description["held_out"] == f"{len(valid)} whole files"


def test_bytes_have_one_byte_a_token_and_byte_pairs_more(corpus, tmp_path):
    pytest.importorskip("tokenizers")
    plain = text(corpus, seq_len=32, cache_dir=tmp_path).prepare()
    assert (plain.spec.vocab_size, plain.spec.seq_len, plain.spec.tokenizer) == (257, 32, "bytes")
    assert plain.spec.bytes_per_token == 1.0
    pairs = text(corpus, seq_len=8, tokenizer="bpe", vocab_size=300, cache_dir=tmp_path).prepare()
    counts = pairs.description
    expected = (counts["valid_bytes"] + counts["valid_documents"]) / counts["valid_tokens"]
    assert math.isclose(pairs.spec.bytes_per_token, expected)
    assert pairs.spec.bytes_per_token > 2


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path):
    (tmp_path / "file").write_text("abc" * 100)
    data = text(tmp_path / "file", seq_len=4, cache_dir=tmp_path / "cache")
    first = data.prepare()
    assert data.prepare().train.path == first.train.path
    (tmp_path / "file").write_text("xyz" * 101)
    assert decoded(data.prepare().train)[0].startswith("xyz")


def test_another_seq_len_uses_the_same_tokens(corpus, tmp_path):
    paths = {text(corpus, seq_len=length, cache_dir=tmp_path).prepare().train.path for length in (8, 16)}
    assert len(paths) == 1


def test_what_is_held_out_does_not_depend_on_where_the_folder_lies(corpus, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in corpus.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    one, other = (text(place, seq_len=8, cache_dir=tmp_path / "cache").prepare() for place in (corpus, moved))
    assert decoded(one.valid) == decoded(other.valid)


def test_too_short_a_text_is_refused_with_the_longest_seq_len(tmp_path):
    (tmp_path / "short").write_text("x" * 400)
    with pytest.raises(DataError, match="the held-out text is too short") as caught:
        text(tmp_path / "short", seq_len=64, cache_dir=tmp_path).prepare()
    assert "found:    21 tokens" in str(caught.value)
    assert "hint: seq_len=20 at most" in str(caught.value)
    with pytest.raises(DataError, match="the training text is too short"):
        text(tmp_path / "short", seq_len=512, cache_dir=tmp_path).prepare()
    assert text(tmp_path / "short", seq_len=400, holdout=0, cache_dir=tmp_path).prepare().valid is None


def test_a_share_that_is_none_is_refused_at_once():
    with pytest.raises(DataError, match="holdout"):
        text(holdout=1.0)


def test_the_standard_library_is_prepared_quickly_and_travels_small(tmp_path):
    data = text("stdlib", cache_dir=tmp_path)
    splits = data.prepare()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert data.prepare() == splits
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
    assert len(splits.train) > 20_000
    assert len(pickle.dumps((data, splits))) < 3000
    assert decoded(splits.valid)[0].isprintable() is False  # a source file has more than one line

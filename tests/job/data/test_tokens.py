import pickle

import numpy as np
import pytest

from konvoi.errors import DataError
from konvoi.job.data.tokens import Tokenizing, Windows, prepare_tokens


@pytest.fixture
def windows(tmp_path):
    np.arange(101, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    return Windows(str(tmp_path / "tokens.bin"), "uint16", 101, 20)


def test_windows_predict_every_token_but_the_first_once(windows):
    assert len(windows) == 5
    predicted = np.concatenate([windows[index]["input_ids"][1:] for index in range(5)])
    assert predicted.tolist() == list(range(1, 101))


def test_reading_many_gives_what_reading_one_by_one_gives(windows):
    indices = np.array([4, 0, 2, 2])
    stacked = windows.__getitems__(indices)["input_ids"]
    assert stacked.dtype == np.int64
    assert stacked.tolist() == [windows[index]["input_ids"].tolist() for index in indices]


def test_windows_behave_as_a_sequence(windows):
    assert windows[-1]["input_ids"].tolist() == windows[4]["input_ids"].tolist()
    with pytest.raises(IndexError, match="window 5 of 5"):
        windows[5]


def test_windows_travel_without_their_tokens(windows):
    windows[0]
    assert len(pickle.dumps(windows)) < 500
    assert pickle.loads(pickle.dumps(windows))[3]["input_ids"].tolist() == windows[3]["input_ids"].tolist()


def test_wide_vocabularies_are_written_wide(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<|endoftext|>": 0, "a": 1, **{f"x{number}": number for number in range(2, 70_000)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "wide.json"))
    how = Tokenizing(seq_len=2, tokenizer=str(tmp_path / "wide.json"))
    splits = prepare_tokens(lambda: [b"a x69999 a"], None, how, identity=1, cache_dir=tmp_path)
    assert splits.train[0]["input_ids"].tolist() == [1, 69999, 1]
    assert splits.spec.vocab_size == 70_000
    assert splits.valid is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_len": 0}, "seq_len counts tokens"),
        ({"tokenizer": "bppe"}, "did you mean bpe?"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size is too small"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(values, message):
    with pytest.raises(DataError) as caught:
        Tokenizing(**values)
    assert message in str(caught.value)

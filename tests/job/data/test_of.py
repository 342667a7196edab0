import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from konvoi.errors import DataError
from konvoi.job.data.of import of
from konvoi.job.data.stream import Stream
from konvoi.job.data.tensors import tensors
from konvoi.values import Data, DataSpec


class Iterable(IterableDataset):
    def __iter__(self):
        return iter([(0.5, 1)])

    def __len__(self):
        return 1


def test_data_stays_what_it_is():
    data = tensors(inputs=[[1.0]], labels=[0], holdout=0)
    assert of(data) is data


def test_pairs_of_a_torch_data_set_get_names_by_what_they_are():
    classes = of(TensorDataset(torch.ones(4, 3), torch.arange(4))).prepare()
    assert isinstance(of([1]), Data)
    assert classes.train[2].keys() == {"inputs", "labels"}
    assert classes.spec == DataSpec(input_shape=(3,))
    numbers = of([(np.ones(3), 0.5), (np.ones(3), 1.5)]).prepare()
    assert numbers.train[1]["targets"].tolist() == [1.5]
    assert numbers.spec == DataSpec(input_shape=(3,), num_targets=1)


def test_dicts_stay_as_they_are():
    sample = {"input_ids": np.arange(9)}
    splits = of([sample]).prepare()
    assert splits.train[0] is sample
    assert splits.spec.seq_len == 8


def test_a_pair_is_train_and_valid():
    splits = of(([(0.5, 1)], [(0.25, 0), (0.25, 1)])).prepare()
    assert (len(splits.train), len(splits.valid)) == (1, 2)
    assert splits.valid[1]["labels"] == 1
    assert splits.description["valid_samples"] == 2


@pytest.mark.parametrize("stream", [Iterable(), {1, 2}], ids=["torch", "any"])
def test_iterables_become_streams(stream):
    splits = of(stream, virtual_shards=8).prepare()
    assert isinstance(splits.train, Stream)
    assert splits.train.virtual_shards == 8
    assert splits.valid is None


def test_a_stream_may_have_validation_data():
    assert len(of((Iterable(), [(0.5, 1)])).prepare().valid) == 1


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("stdlib", "konvoi.data.text"),
        (None, "konvoi.data.tensors, text"),
        (3, "konvoi.data.tensors, text"),
        ({"a": 1}, "tensors(inputs="),
        (np.ones(3), "tensors(inputs="),
        ((torch.ones(3), torch.ones(3)), "tensors(inputs="),
        (([1], Iterable()), "validation data needs a length"),
        (iter([1]), "a generator ends after one pass"),
        (DataLoader([1]), "a DataLoader has made batches"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_is_refused_with_what_is(value, hint):
    with pytest.raises(DataError) as caught:
        of(value)
    assert hint in str(caught.value)
    assert "expected:" in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "the data set is empty"),
        ([3], "this sample cannot be used"),
        ([("text", 1)], "'inputs' is no array of numbers"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_before_training(samples, message):
    with pytest.raises(DataError, match=message):
        of(samples).prepare()

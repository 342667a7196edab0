import numpy as np
import pytest

from konvoi.errors import DataError
from konvoi.job.data.mapping import map as map_data
from konvoi.job.data.tensors import tensors
from konvoi.values import Data, DataSpec


def flip(sample, rng):
    return {**sample, "inputs": sample["inputs"] * rng.choice([-1, 1])}


def data():
    return tensors(inputs=np.ones((100, 1)), labels=np.zeros(100))


def test_a_function_is_applied_to_both_parts_or_to_training_alone():
    both = map_data(data(), flip)
    assert isinstance(both, Data)
    splits = both.prepare()
    assert {splits.valid[index]["inputs"][0] for index in range(10)} == {-1, 1}
    assert splits.description["maps"] == ["flip"]
    alone = map_data(data(), flip, valid=False).prepare()
    assert {alone.valid[index]["inputs"][0] for index in range(10)} == {1}
    assert {alone.train[index]["inputs"][0] for index in range(90)} == {-1, 1}


def test_a_sample_read_twice_outside_training_is_the_same():
    source = map_data(data(), flip).prepare().train
    assert [source[index]["inputs"][0] for index in range(50)] == [source[index]["inputs"][0] for index in range(50)]


def test_the_spec_can_be_replaced():
    assert map_data(data(), flip, spec=DataSpec(num_classes=7)).prepare().spec.num_classes == 7
    assert map_data(data(), flip).prepare().spec.num_classes == 1


def test_what_cannot_be_called_is_refused():
    with pytest.raises(DataError, match="map needs a function"):
        map_data(data(), 3)

import numpy as np
import pytest
import torch

from konvoi.errors import DataError
from konvoi.job.data.tensors import tensors
from konvoi.values import DataSpec


def test_classes_from_numpy():
    splits = tensors(inputs=np.arange(40.0).reshape(20, 2), labels=np.arange(20)[:, None] % 3).prepare()
    assert (len(splits.train), len(splits.valid)) == (18, 2)
    assert splits.spec == DataSpec(num_classes=3, input_shape=(2,))
    sample = splits.train[0]
    assert (sample["inputs"].dtype, sample["labels"].dtype, sample["labels"].shape) == (np.float32, np.int64, ())
    rows = [int(part[index]["inputs"][0]) // 2 for part in (splits.train, splits.valid) for index in range(len(part))]
    assert sorted(rows) == list(range(20))
    assert all(
        part[i]["labels"] == part[i]["inputs"][0] // 2 % 3 for part in (splits.train, splits.valid) for i in range(2)
    )


def test_numbers_from_torch():
    splits = tensors(inputs=torch.ones(5, 3, dtype=torch.float64), targets=torch.arange(5.0), holdout=0).prepare()
    assert splits.valid is None
    assert splits.spec == DataSpec(input_shape=(3,), num_targets=1)
    assert splits.train[4]["targets"].tolist() == [4.0]
    assert splits.train.__getitems__(np.array([1, 3]))["targets"].tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inputs": np.ones((3, 1))}, "needs either labels or targets"),
        ({"inputs": np.ones((3, 1)), "labels": np.ones(3), "targets": np.ones(3)}, "needs either labels or targets"),
        ({"inputs": np.ones((3, 1)), "labels": np.zeros(4)}, "different lengths"),
        ({"inputs": np.ones((0, 1)), "labels": np.zeros(0)}, "empty"),
        ({"inputs": np.array([["a"]]), "labels": np.zeros(1)}, "inputs must be numbers"),
        ({"inputs": np.ones((2, 1)), "labels": [0, -1]}, "labels are classes"),
        ({"inputs": np.ones((2, 1)), "labels": [0.5, 1]}, "labels are classes"),
        ({"inputs": np.ones((2, 1)), "labels": np.zeros((2, 2))}, "one label per sample"),
        ({"inputs": [[1.0], [float("nan")]], "labels": [0, 1]}, "1 of 2"),
        ({"inputs": np.ones((2, 1)), "labels": [0, 1], "holdout": -0.1}, "holdout"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values, message):
    with pytest.raises(DataError) as caught:
        tensors(**values).prepare()
    assert message in str(caught.value)

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from konvoi.errors import DataError
from konvoi.job.data.collate import collate


def test_it_gives_what_torch_gives():
    samples = [
        {
            "array": np.full((2, 3), place, np.float32),
            "scalar": np.int64(place),
            "tensor": torch.full((2,), place),
            "whole": place,
            "real": place / 2,
            "name": str(place),
            "nested": {"x": np.array([place])},
        }
        for place in range(3)
    ]
    ours, theirs = collate(samples), default_collate(samples)
    assert list(ours) == list(theirs)
    for name in ("array", "scalar", "tensor", "whole", "real"):
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])
    assert ours["name"] == theirs["name"]
    assert torch.equal(ours["nested"]["x"], theirs["nested"]["x"])


def test_samples_of_different_shapes_are_named():
    with pytest.raises(DataError, match="'inputs' cannot be put into one batch") as caught:
        collate([{"inputs": np.zeros(3)}, {"inputs": np.zeros(4)}])
    assert "(3,)" in str(caught.value)
    assert "(4,)" in str(caught.value)
    assert "hint: pad or crop" in str(caught.value)


def test_samples_that_are_no_dicts_are_refused():
    with pytest.raises(DataError, match="a sample must be a dict"):
        collate([np.zeros(3)])


def test_samples_with_different_keys_are_refused():
    with pytest.raises(DataError, match="different keys"):
        collate([{"a": 1}, {"b": 1}])

"""Data that are where a recipe is trained, and nowhere else."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import DataError
from konvoi.values import DataSpec


def table(path, width=3):
    columns = np.load(path)
    return kv.data.tensors(inputs=columns[:, :width], labels=columns[:, -1].astype(int))


def stored(folder, name, width=3):
    draw = np.random.default_rng(0)
    path = folder / f"{name}.npy"
    np.save(path, np.concatenate([draw.normal(size=(40, width)), draw.integers(0, 2, (40, 1))], 1))
    return path


def test_a_slot_is_its_example_until_a_site_fills_it(tmp_path):
    slot = kv.data.slot(table, example=stored(tmp_path, "example"))
    assert slot.prepare().spec == DataSpec(input_shape=(3,), num_classes=2)
    own = stored(tmp_path, "own")
    assert np.array_equal(slot.at(own).prepare().train.columns["inputs"], table(own).prepare().train.columns["inputs"])


def test_other_data_than_the_recipe_wants_are_refused(tmp_path):
    wanted = kv.data.slot(table, example=stored(tmp_path, "example")).prepare().spec
    slot = kv.data.slot(functools.partial(table, width=5))
    with pytest.raises(DataError, match=r"are not what the recipe wants\n.*input_shape=\(5,\)\n.*input_shape=\(3,\)"):
        slot.at(stored(tmp_path, "own", width=5), wanted).prepare()


def test_what_a_spec_leaves_open_is_not_looked_at(tmp_path):
    own = stored(tmp_path, "own")
    assert kv.data.slot(table, spec=DataSpec(num_classes=2)).at(own).prepare().spec.input_shape == (3,)


def test_a_slot_is_told_how_to_read():
    with pytest.raises(DataError, match="how its data are read"):
        kv.data.slot("data.npz")

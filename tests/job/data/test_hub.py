import random

import numpy as np
import pytest

from konvoi.errors import DataError
from konvoi.job.data.hub import hub
from konvoi.job.data.loader import Batches
from konvoi.job.data.of import of
from konvoi.job.data.stream_loader import StreamBatches
from konvoi.job.data.tokenizer import load_tokenizer

datasets = pytest.importorskip("datasets")


def table(count=40):
    columns = {"x": [[float(row), 1.0] for row in range(count)], "label": [row % 3 for row in range(count)]}
    columns["comment"] = [f"row {row} of the table" for row in range(count)]
    features = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float32")),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "comment": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_columns_become_keys_in_any_format(form):
    splits = hub(table().with_format(form), columns={"inputs": "x", "labels": "label"}, holdout=0.1).prepare()
    assert (len(splits.train), len(splits.valid)) == (36, 4)
    assert (splits.spec.num_classes, splits.spec.input_shape) == (3, (2,))
    sample = splits.train[3]
    assert (sample["inputs"].dtype, sample["labels"].dtype) == (np.float32, np.int64)
    stacked = splits.train.__getitems__(np.array([3, 1]))
    assert stacked["inputs"].tolist() == [splits.train[row]["inputs"].tolist() for row in (3, 1)]
    step = next(iter(Batches(splits.train, seed=0, global_batch=4, worker=0, num_workers=1)))
    assert step[0].batch["inputs"].shape == (4, 2)


def test_columns_of_numbers_are_found_and_the_others_named():
    splits = hub(table()).prepare()
    assert splits.train[0].keys() == {"x", "labels"}
    assert splits.description["left_out"] == ["comment"]


def test_a_dict_of_data_sets_has_its_own_validation_part():
    both = datasets.DatasetDict({"train": table(10), "test": table(5), "validation": table(3)})
    splits = hub(both).prepare()
    assert (len(splits.train), len(splits.valid)) == (10, 3)
    assert isinstance(of(both).prepare().train, type(splits.train))


def test_images_are_scaled():
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((4, 5), shade, np.uint8)) for shade in (0, 51, 255)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1]}, features=features)
    splits = hub(data, holdout=0).prepare()
    assert splits.spec.input_shape == (1, 4, 5)
    assert splits.train[1]["inputs"].max() == np.float32(0.2)
    assert splits.train.__getitems__(np.array([2, 0]))["inputs"].shape == (2, 1, 4, 5)


def test_text_becomes_token_windows(tmp_path):
    splits = hub(table(), text_column="comment", seq_len=8, holdout=0.1, cache_dir=tmp_path).prepare()
    written = np.fromfile(splits.valid.path, dtype=splits.valid.dtype)
    documents = np.split(written, np.flatnonzero(written == 256))[:-1]
    texts = [load_tokenizer("bytes").decode(document.tolist()) for document in documents]
    assert len(texts) == 4
    assert set(texts) <= set(table()["comment"])
    assert hub(table(), text_column="comment", seq_len=8, holdout=0.1, cache_dir=tmp_path).prepare() == splits


def test_a_transform_that_draws_at_random_is_keyed():
    data = table().with_transform(lambda rows: {"x": [[random.random()] for _ in rows["x"]]})

    def first_batch(num_loaders):
        source = hub(data, columns=["x"], holdout=0).prepare().train
        with Batches(source, seed=0, global_batch=4, worker=0, num_workers=1, num_loaders=num_loaders) as batches:
            return next(iter(batches))[0].batch["x"].tolist()

    assert first_batch(0) == first_batch(1)


def test_an_iterable_data_set_resumes_by_its_state():
    def batches(stream, **more):
        return StreamBatches(of(stream).prepare().train, seed=0, global_batch=8, worker=0, num_workers=1, **more)

    columns = datasets.Dataset.from_dict({"x": list(range(20))})
    whole = batches(columns.to_iterable_dataset())
    held = iter(whole)
    seen, states = [], []
    for _ in range(7):
        seen.append(next(held)[0].batch["x"].tolist())
        states.append(whole.state_dict())
    assert sorted(value for step in seen[:5] for value in step) == sorted([*range(20), *range(20)])
    for step in (1, 2, 3, 5):
        resumed = iter(batches(columns.to_iterable_dataset(), start_step=step, state=states[step - 1]))
        assert [next(resumed)[0].batch["x"].tolist() for _ in range(7 - step)] == seen[step:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hub(table(), columns=["y"]), "there is no such column"),
        (lambda: hub(table(), text_column="coment"), "did you mean comment?"),
        (lambda: hub(table(), columns=["comment"]), "does not hold numbers"),
        (lambda: hub(table(), text_column="label"), "is no text"),
        (lambda: hub(table().select_columns(["comment"])), "no column holds numbers"),
        (lambda: hub(table(0)), "empty"),
        (lambda: hub([1, 2]), "hub takes data of the datasets library"),
        (lambda: hub(datasets.DatasetDict({"test": table()})), "no training part"),
        (lambda: hub(table(), columns=["x"], text_column="comment"), "either columns or text"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(make, message, tmp_path, monkeypatch):
    monkeypatch.setenv("KONVOI_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        make().prepare()
    assert message in str(caught.value)


def test_rows_of_different_shapes_are_named():
    ragged = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5], [6]]})
    source = hub(ragged, holdout=0).prepare().train
    with pytest.raises(DataError, match="differ in shape"):
        source.__getitems__(np.arange(3))

import pickle

import numpy as np
import pytest

from konvoi.errors import DataError
from konvoi.job.data.image_arrays import scaled
from konvoi.job.data.images import images


def pictures(count, shape=(4, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def prepared(tmp_path, **arrays):
    np.savez_compressed(tmp_path / "data.npz", **arrays)
    return images(tmp_path / "data.npz", cache_dir=tmp_path / "cache").prepare()


def test_parts_are_kept_and_doubles_across_them_left_out_of_the_earlier(tmp_path):
    train, val = pictures(20), pictures(6, seed=1)
    train[3], train[5] = val[2], train[4]
    labels = np.arange(20)[:, None] % 2
    splits = prepared(tmp_path, train_images=train, train_labels=labels, val_images=val, val_labels=np.zeros((6, 1)))
    assert (len(splits.train), len(splits.valid)) == (19, 6)
    assert splits.description["doubles"]["left_out_of_train"] == 1
    assert splits.description["doubles"]["inside_train"] == 1
    assert splits.description["samples_per_class"]["train"] == [10, 9]
    assert (splits.spec.num_classes, splits.spec.input_shape) == (2, (1, 4, 5))
    sample = splits.train[3]  # the fourth that is left is the fifth of the file
    assert sample["inputs"].dtype == np.float32
    assert np.array_equal(sample["inputs"], train[4][None].astype(np.float32) / 255)
    assert sample["labels"] == 0


def test_reading_many_gives_what_reading_one_by_one_gives(tmp_path):
    splits = prepared(tmp_path, images=pictures(10, (4, 5, 3)), labels=np.arange(10))
    stacked = splits.train.__getitems__(np.array([2, 0]))
    assert stacked["inputs"].shape == (2, 3, 4, 5)
    for row, index in enumerate((2, 0)):
        assert np.array_equal(stacked["inputs"][row], splits.train[index]["inputs"])
        assert stacked["labels"][row] == splits.train[index]["labels"]


def test_without_a_held_out_part_a_share_is_held_out_and_doubles_do_not_leak(tmp_path):
    repeated = np.repeat(pictures(40), 2, axis=0)
    splits = prepared(tmp_path, images=repeated, labels=np.zeros(80))
    seen = {splits.train[index]["inputs"].tobytes() for index in range(len(splits.train))}
    assert len(splits.valid) == 8
    assert not [index for index in range(8) if splits.valid[index]["inputs"].tobytes() in seen]


def test_images_travel_without_their_pixels(tmp_path):
    source = prepared(tmp_path, images=pictures(100), labels=np.zeros(100)).train
    source[0]
    assert len(pickle.dumps(source)) < 600
    assert np.array_equal(pickle.loads(pickle.dumps(source))[5]["inputs"], source[5]["inputs"])


def test_every_way_of_storing_ends_between_zero_and_one():
    assert scaled(np.array([[0, 65535]], np.uint16)).tolist() == [[[0.0, 1.0]]]
    assert scaled(np.array([[0.25, 1.0]])).tolist() == [[[0.25, 1.0]]]
    assert scaled(np.zeros((7, 4, 5, 3), np.uint8), batched=True).shape == (7, 3, 4, 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"val_images": pictures(2), "val_labels": np.zeros(2)}, "no training images"),
        ({"images": pictures(2)}, "have no labels"),
        ({"images": pictures(2), "labels": np.zeros(3)}, "2 images, 3 labels"),
        ({"images": pictures(2).astype(float), "labels": np.zeros(2)}, "another scale"),
        ({"images": np.zeros((2, 3), np.uint8), "labels": np.zeros(2)}, "another layout"),
        ({"images": np.array([None, None]), "labels": np.zeros(2)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, **arrays)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an .npz"):
        images(tmp_path / "data.npz", cache_dir=tmp_path).prepare()

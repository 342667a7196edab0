import sys

import numpy as np
import pytest

from konvoi.errors import DataError, MissingExtra
from konvoi.job.data.images import images

Image = pytest.importorskip("PIL.Image")


def draw(path, shade, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), shade, np.uint8)
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(path)


def test_a_folder_for_each_class_in_train_and_val(tmp_path):
    for number in range(8):
        draw(tmp_path / "train" / ("cat" if number % 2 else "dog") / f"{number}.png", 20 * number + 10)
    for number in range(4):
        draw(tmp_path / "val" / ("cat" if number % 2 else "dog") / f"{number}.png", 20 * number + 5)
    draw(tmp_path / "val" / "cat" / "double.png", 30)  # train/cat/1.png
    splits = images(tmp_path).prepare()
    assert splits.description["classes"] == ["cat", "dog"]
    assert splits.description["doubles"]["left_out_of_train"] == 1
    assert (len(splits.train), len(splits.valid)) == (7, 5)
    assert (splits.spec.num_classes, splits.spec.input_shape) == (2, (1, 4, 6))
    sample = splits.train[0]  # cat/3.png
    assert sample["labels"] == 0
    assert sample["inputs"].shape == (1, 4, 6)
    assert sample["inputs"][0, 1, 1] == np.float32(70 / 255)


def test_a_plain_folder_of_classes_is_split(tmp_path):
    for number in range(20):
        draw(tmp_path / str(number % 2) / f"{number}.png", 10 * number + 10)
    splits = images(tmp_path, holdout=0.2).prepare()
    assert (len(splits.train), len(splits.valid)) == (16, 4)


def test_images_of_different_sizes_need_a_size(tmp_path):
    draw(tmp_path / "a" / "1.png", 100)
    draw(tmp_path / "a" / "2.png", 200, size=(8, 8))
    with pytest.raises(DataError, match="different sizes") as caught:
        images(tmp_path).prepare()
    assert "size=(height, width)" in str(caught.value)
    splits = images(tmp_path, size=(3, 2), holdout=0).prepare()
    assert [splits.train[index]["inputs"].shape for index in range(2)] == [(1, 3, 2)] * 2


def test_colours_give_three_channels(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (2, 2), (255, 0, 51)).save(tmp_path / "a" / "1.png")
    sample = images(tmp_path, holdout=0).prepare().train[0]
    assert sample["inputs"][:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no folders"):
        images(tmp_path).prepare()
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="there are no images"):
        images(tmp_path).prepare()
    draw(tmp_path / "train" / "a" / "1.png", 10)
    draw(tmp_path / "val" / "b" / "1.png", 10)
    with pytest.raises(DataError, match="classes that train has not"):
        images(tmp_path).prepare()


def test_a_file_that_is_no_image_or_half_of_one_is_named(tmp_path):
    draw(tmp_path / "a" / "1.png", 10, size=(50, 50))
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "2.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"2.png is no image"):
        images(tmp_path).prepare()
    (tmp_path / "a" / "2.png").write_bytes(whole[: len(whole) - 40])
    source = images(tmp_path, holdout=0).prepare().train
    with pytest.raises(DataError, match=r"2.png cannot be decoded"):
        source[1]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "a" / "1.png", 10)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught:
        images(tmp_path).prepare()
    assert "pip install 'konvoi[images]'" in str(caught.value)

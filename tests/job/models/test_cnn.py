import pytest
import torch

from konvoi.errors import JobError
from konvoi.job.models import cnn
from konvoi.values import DataSpec, InitializesByName, ModelRecipe


def build(**sizes):
    torch.manual_seed(0)
    return cnn(**{"channels": 8, **sizes}).fit(DataSpec(input_shape=(3, 16, 16), num_classes=5))()


def test_a_cnn_is_a_model_recipe_and_fills_by_name():
    assert isinstance(cnn(), ModelRecipe)
    assert isinstance(build(), InitializesByName)


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (9, 31)])
def test_images_of_any_size_give_one_output_a_class(size):
    assert build()(torch.randn(2, 3, *size)).shape == (2, 5)


def test_channels_that_eight_does_not_divide_still_get_groups():
    assert build(channels=6)(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_a_sample_does_not_depend_on_its_batch():
    model, images = build().double(), torch.randn(6, 3, 16, 16, dtype=torch.float64)
    apart = torch.cat([model(images[:2]), model(images[2:])])
    torch.testing.assert_close(model(images), apart)


def test_signals_keep_their_size():
    model = build(depth=5, channels=16)
    assert 0.1 < model(torch.randn(32, 3, 32, 32)).std().item() < 10


def test_what_are_no_images_is_refused():
    with pytest.raises(JobError, match="takes images") as caught:
        cnn().fit(DataSpec(input_shape=(28, 28), num_classes=10))
    assert "(1, height, width)" in caught.value.hint
    with pytest.raises(JobError, match="too small"):
        cnn(depth=0)

import pytest
import torch

from konvoi.errors import JobError
from konvoi.job.models import mlp
from konvoi.values import DataSpec, InitializesByName, ModelRecipe


def test_an_mlp_fits_classes_and_regression_targets():
    assert isinstance(mlp(), ModelRecipe)
    assert mlp((8,)).fit(DataSpec(input_shape=(3, 4), num_classes=5))()(torch.randn(2, 3, 4)).shape == (2, 5)
    assert mlp((8,)).fit(DataSpec(input_shape=(6,), num_targets=2))()(torch.randn(2, 6)).shape == (2, 2)


def test_without_widths_it_is_linear():
    model = mlp((), input_shape=(4,), num_outputs=3)()
    x = torch.randn(2, 4)
    torch.testing.assert_close(model(x), x @ model.head.weight.T + model.head.bias)


def test_signals_keep_their_size_through_many_layers():
    torch.manual_seed(0)
    model = mlp((512,) * 10, input_shape=(512,), num_outputs=512)()
    assert isinstance(model, InitializesByName)
    assert model(torch.randn(64, 512)).std().item() == pytest.approx(1.0, rel=0.5)


@pytest.mark.parametrize(
    ("recipe", "spec", "message"),
    [
        (mlp(), DataSpec(vocab_size=256), "inputs"),
        (mlp(), DataSpec(input_shape=(4,)), "how many outputs"),
        (mlp(num_outputs=2), DataSpec(input_shape=(4,), num_classes=3), "fewer outputs"),
        (mlp(input_shape=(5,)), DataSpec(input_shape=(4,), num_classes=3), "another shape"),
    ],
)
def test_data_that_does_not_fit_is_refused(recipe, spec, message):
    with pytest.raises(JobError, match=message):
        recipe.fit(spec)


def test_widths_must_be_positive_and_the_data_known():
    with pytest.raises(JobError, match="too small"):
        mlp((8, 0))
    with pytest.raises(JobError, match="does not know its data"):
        mlp()()

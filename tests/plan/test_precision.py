import contextlib

import pytest
import torch

from konvoi.plan.island import PRECISIONS, Island
from konvoi.plan.precision import LossScale, precision
from tests.plan.split import split_rows


def test_a_scale_that_is_not_dynamic_stays():
    scale = LossScale(2.0**-5)
    assert scale.after(True) is scale
    assert scale.after(False) is scale


def test_a_dynamic_scale_is_halved_by_an_overflow_and_counts_anew():
    assert LossScale(8.0, is_dynamic=True, num_good_steps=7).after(False) == LossScale(4.0, True, 0)


def test_a_dynamic_scale_doubles_after_enough_good_steps():
    scale = LossScale(8.0, is_dynamic=True)
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        scale = scale.after(True)
    assert scale.value == 8.0
    assert scale.after(True) == LossScale(16.0, True, 0)


def test_parameters_are_in_full_precision_and_compute_is_not():
    assert precision("bf16").parameters == torch.float32
    assert precision("bf16").compute == torch.bfloat16
    assert precision("fp64").parameters == torch.float64
    assert all(precision(name) for name in PRECISIONS)


def test_full_precision_needs_no_autocast():
    assert isinstance(precision("fp32").autocast(torch.device("cpu")), contextlib.nullcontext)


def test_matrix_products_are_in_the_low_precision_inside_autocast():
    a = torch.ones(2, 2)
    with precision("bf16").autocast(torch.device("cpu")):
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "torch.float32"), ("fp64", "torch.float64")])
def test_inputs_are_cast_where_everything_is_in_float64(pool, name, dtype):
    (found,) = pool.run(split_rows.dtypes_of_inputs, Island(precision=name), 1)
    assert found == (dtype, "torch.int64", dtype)

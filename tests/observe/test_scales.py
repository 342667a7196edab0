import math
from itertools import pairwise

import pytest

from konvoi.observe.scales import Scale, fit_scale, smooth, thin


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1500, [0, 500, 1000, 1500]), (0, 0.00315, [0, 0.001, 0.002, 0.003]), (-1, 1, [-1, 0, 1])],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, ticks):
    assert Scale(low, high).ticks(about=3) == pytest.approx(ticks)


@pytest.mark.parametrize("high", [2.0, 7.0, 30.0, 1e3, 1e9])
def test_logarithmic_ticks_are_inside_and_keep_their_distance(high):
    scale = Scale(1.1, high, is_log=True)
    ticks = scale.ticks(about=6)
    places = [scale(tick) for tick in ticks]
    assert 2 <= len(ticks) <= 11
    assert all(1.1 <= tick <= high for tick in ticks)
    assert all(after - before >= 0.099 for before, after in pairwise(places))


def test_a_range_with_a_large_ratio_becomes_logarithmic_only_where_it_is_asked_for_and_positive():
    assert fit_scale([1, 100], log_from=20).is_log
    assert not fit_scale([1, 100]).is_log
    assert not fit_scale([0, 100], log_from=20).is_log
    assert not fit_scale([10, 100], log_from=20).is_log


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [0.0, 0.0], [-5.0, -5.0]])
def test_a_range_without_a_width_gets_one(values):
    scale = fit_scale(values)
    assert scale.low < scale.high
    assert scale.ticks(3)


def test_smoothing_keeps_a_line_and_leaves_out_what_is_not_finite():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smooth([2.0, 2.0, math.nan, 2.0, 2.0]) == pytest.approx([2.0] * 5)
    assert smooth([]) == []


def test_the_first_value_is_not_smoothed_away():
    assert smooth([10.0, 5.0, 2.0, 1.0, 1.0, 1.0])[0] == 10.0


def test_thinning_keeps_the_number_of_buckets_and_every_spike():
    points = [(float(x), 1.0) for x in range(10_001)]
    points[5000] = (5000.0, 99.0)
    buckets = thin(points, 400)
    assert len(buckets) <= 400
    assert max(bucket.high for bucket in buckets) == 99.0
    assert max(bucket.mean for bucket in buckets) < 10.0


def test_a_bucket_without_a_finite_value_is_a_gap():
    assert math.isnan(thin([(1.0, math.nan)], 10)[0].mean)

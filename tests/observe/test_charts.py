import math
from xml.etree import ElementTree

import pytest

from konvoi.observe.charts import Chart, Mark, draw


def _points(number):
    return [(float(x), 5.0 - 4.0 * x / number) for x in range(1, number + 1)]


@pytest.mark.parametrize("number", [0, 1, 2, 50, 1500, 20_000])
def test_a_chart_of_any_length_is_well_formed_and_of_bounded_size(number):
    svg = draw(Chart(name="loss", points=_points(number)), 920, 380)
    ElementTree.fromstring(svg)
    assert len(svg) < 120_000
    assert "nan" not in svg


def test_every_coordinate_lies_inside_the_drawing():
    svg = draw(Chart(name="loss", points=_points(500), dots=[(0.0, 9.0)], dots_name="valid", log_from=5.0), 400, 200)
    for circle in ElementTree.fromstring(svg).iter("circle"):
        assert 0 <= float(circle.get("cx")) <= 400
        assert 0 <= float(circle.get("cy")) <= 200


def test_a_value_that_is_not_finite_breaks_the_line():
    points = [(1.0, 2.0), (2.0, math.nan), (3.0, 2.0), (4.0, math.inf), (5.0, 1.0)]
    path = ElementTree.fromstring(draw(Chart(name="loss", points=points), 400, 200)).find("path[@class='raw']")
    assert path.get("d").count("M") == 3


def test_a_long_run_shows_a_band_instead_of_every_point():
    assert 'class="raw"' in draw(Chart(name="loss", points=_points(500)), 920, 380)
    long = draw(Chart(name="loss", points=_points(5000)), 920, 380)
    assert 'class="raw"' not in long
    assert 'class="band"' in long


def test_names_and_marks_are_escaped():
    mark = Mark(x=3.0, text="<script>", is_bad=True)
    svg = draw(Chart(name='a"<b>', points=_points(9), dots=[(3.0, 2.0)], dots_name="<i>", marks=[mark]), 400, 200)
    ElementTree.fromstring(svg)
    assert not any(tag in svg for tag in ("<script>", "<b>", "<i>"))


def test_points_and_dots_say_their_values():
    svg = draw(Chart(name="loss", points=_points(4), dots=[(4.0, 1.25)], dots_name="valid loss"), 400, 200)
    assert "valid loss at step 4: 1.2500" in svg
    assert "step 4: 1" in svg

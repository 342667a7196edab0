import math

import pytest

from konvoi.observe.events import KINDS, Evaluated, from_json, to_json
from tests.observe.made_up import one_of_each, step_done


@pytest.mark.parametrize("event", one_of_each(), ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_json_as_it_was(event):
    assert from_json(to_json(event)) == event


def test_the_table_of_made_up_events_has_every_kind():
    assert {type(event).__name__ for event in one_of_each()} == set(KINDS)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_survives_json(loss):
    assert repr(from_json(to_json(step_done(1, loss=loss))).loss) == repr(loss)


def test_a_figure_that_is_not_finite_survives_json():
    event = Evaluated(step=1, split="valid", values={"loss": math.nan}, seconds=1.0)
    assert math.isnan(from_json(to_json(event)).values["loss"])


def test_a_line_is_one_line():
    assert all("\n" not in to_json(event) for event in one_of_each())

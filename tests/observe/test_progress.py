import math

import pytest

from konvoi.observe.events import Ready, Restarted
from konvoi.observe.progress import Progress, words
from tests.observe.made_up import run_started, step_done


def _after(*events):
    progress = Progress()
    for event in events:
        progress = progress.after(event)
    return progress


def test_before_the_first_step_the_phase_is_told():
    assert words(_after(run_started()), now=0) == ["0/1,500", "starting workers"]
    assert words(_after(run_started(), Ready(num_parameters=1, seconds=1.0)), now=0) == ["0/1,500", "first step"]
    assert words(_after(Restarted(attempt=1, max_restarts=1, from_step=7)), now=0)[1] == "restarting"


def test_a_slow_first_step_does_not_colour_the_rate():
    progress = _after(step_done(1, seconds=30.0), step_done(2, seconds=0.1), step_done(3, seconds=0.1))
    assert progress.seconds == pytest.approx(0.1)


def test_the_loss_is_smoothed_and_not_poisoned_by_one_that_is_not_finite():
    progress = _after(*(step_done(n, loss=2.0) for n in range(1, 30)), step_done(30, loss=4.0))
    assert 2.0 < progress.loss < 2.2
    assert progress.after(step_done(31, loss=math.nan, skipped=True)).loss == progress.loss


def test_skipped_steps_are_counted():
    assert "skipped 2" in words(_after(*(step_done(n, loss=math.nan, skipped=True) for n in (1, 2))), now=0)


def test_the_unit_comes_from_the_job():
    assert any("tokens/s" in word for word in words(_after(run_started(), step_done(1)), now=0))
    assert any("samples/s" in word for word in words(_after(run_started(job={}), step_done(1)), now=0))

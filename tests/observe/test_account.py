import math

import pytest

from konvoi.observe.account import account
from konvoi.observe.events import Ready, Restarted, RunEnded, RunStarted, StepDone, Warned, WorkerDied
from tests.observe.made_up import BEGAN, one_of_each, realistic_run, run_started, step_done


def test_the_time_spent_adds_up_to_the_wall_time_of_all_launches():
    run = account(realistic_run(300))
    assert sum(seconds for _, seconds in run.spent) == pytest.approx(run.wall_s)
    assert run.wall_s < 200  # the hour between stop and resumption is not in it


def test_steps_done_again_are_time_lost_not_compute():
    lost = [step_done(n, BEGAN + n, seconds=1.0, data_s=0.25, wait_s=0.25) for n in (1, 2, 3, 4)]
    restart = Restarted(time=BEGAN + 5, attempt=1, max_restarts=1, from_step=2)
    again = [step_done(n, BEGAN + n + 3, seconds=1.0, data_s=0.25, wait_s=0.25) for n in (3, 4)]
    spent = dict(account([run_started(), *lost, restart, *again]).spent)
    assert spent == pytest.approx(
        {"compute": 2.0, "waiting on data": 1.0, "waiting on others": 1.0, "steps done again": 2.0, "other": 1.0}
    )


def test_an_empty_run_has_an_account():
    run = account([])
    assert (run.wall_s, run.rate, run.weight, run.held_out(), run.ended) == (0, 0, 0, None, None)
    assert math.isnan(run.final_loss[0])


def test_a_run_that_was_resumed_after_its_end_has_not_ended():
    ended = RunEnded(time=BEGAN + 1, reason="stopped", step=0, seconds=1.0)
    assert account([run_started(), ended]).ended is ended
    assert account([run_started(), ended, run_started(BEGAN + 5)]).ended is None


def test_bits_per_byte_tell_more_than_the_loss():
    assert account(realistic_run(200)).held_out()[0] == "bits_per_byte"
    assert account(one_of_each()[:5]).held_out()[0] == "loss"


def test_a_warning_said_often_is_one_incident_with_its_count():
    incidents = account([Warned(time=float(n), message="slow") for n in range(5)]).incidents
    assert [incident.message for incident in incidents] == ["slow (5 times)"]


def test_incidents_are_the_starts_the_deaths_and_the_ends_in_order():
    kinds = [type(incident) for incident in account(realistic_run(300)).incidents]
    assert kinds == [RunStarted, RunEnded, RunStarted, Warned, WorkerDied, Restarted, RunEnded]


def test_skipped_steps_are_an_incident_and_their_samples_do_not_count():
    run = account([step_done(1, 1.0, weight=4.0), step_done(2, 2.0, weight=4.0, loss=math.nan, skipped=True)])
    assert run.weight == 4.0
    assert "1 step left out" in run.incidents[0].message
    assert run.final_loss == (2.0, 1)


def test_start_up_is_counted_at_each_start():
    ready = [Ready(time=BEGAN + n, num_parameters=3, seconds=2.0) for n in (2, 9)]
    assert dict(account([run_started(), ready[0], step_done(1, BEGAN + 5), ready[1]]).spent)["start-up"] == 4.0
    assert isinstance(account([step_done(1)]).steps[0], StepDone)

import os

import pytest

from konvoi.errors import DiskFull
from konvoi.observe.events import Evaluated, Restarted, to_json
from konvoi.observe.sinks.jsonl import Jsonl, evaluations, read_events, steps
from tests.observe.made_up import one_of_each, realistic_run, run_started, step_done


def _write(folder, events):
    sink = Jsonl(folder)
    for event in events:
        sink(event)
    sink.close()


def test_what_was_written_is_read(tmp_path):
    _write(tmp_path, one_of_each())
    assert read_events(tmp_path) == one_of_each()
    assert read_events(tmp_path / "events.jsonl") == one_of_each()


def test_an_event_is_in_the_file_before_the_next_one_happens(tmp_path):
    sink = Jsonl(tmp_path)
    sink(step_done(1, 1.0))
    assert read_events(tmp_path) == [step_done(1, 1.0)]
    sink.close()


def test_a_run_without_a_record_has_no_events(tmp_path):
    assert read_events(tmp_path) == []
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize("num_bytes", [1, 2, 30, 100])
def test_a_last_line_that_was_cut_is_left_out_and_the_next_run_appends_below_it(tmp_path, num_bytes):
    _write(tmp_path, [step_done(1, 1.0), step_done(2, 2.0)])
    path = tmp_path / "events.jsonl"
    os.truncate(path, path.stat().st_size - num_bytes)
    whole = [step_done(1, 1.0)] if num_bytes > 1 else [step_done(1, 1.0), step_done(2, 2.0)]
    assert read_events(path) == whole
    _write(tmp_path, [step_done(2, 3.0)])
    assert read_events(path) == [*whole, step_done(2, 3.0)]


def test_a_kind_of_event_from_a_newer_version_is_left_out(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "Teleported", "time": 1}\n[]\n7\n' + to_json(step_done(1)) + "\n")
    assert read_events(tmp_path) == [step_done(1)]


def test_steps_that_were_done_again_count_once_with_their_last_record():
    events = [step_done(n, loss=1.0) for n in (1, 2, 3, 4)]
    events += [Restarted(attempt=1, max_restarts=3, from_step=2), step_done(3, loss=9.0), step_done(4, loss=9.0)]
    assert [(step.step, step.loss) for step in steps(events)] == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]


def test_steps_beyond_the_checkpoint_count_no_more_before_they_are_done_again():
    done = [step_done(n) for n in (1, 2, 3, 4)]
    assert [step.step for step in steps([*done, run_started(resumed_from=2)])] == [1, 2]
    assert [step.step for step in steps([*done, run_started()])] == []


def test_a_step_done_again_needs_no_announcement():
    assert [step.step for step in steps([step_done(n) for n in (1, 2, 3, 2)])] == [1, 2]


def test_every_step_of_a_resumed_and_restarted_run_is_there_once():
    assert [step.step for step in steps(realistic_run(300))] == list(range(1, 301))
    assert [evaluated.step for evaluated in evaluations(realistic_run(300), Evaluated)] == [0, 100, 200, 300]


def test_evaluations_of_a_path_left_behind_are_left_out():
    evaluated = [Evaluated(step=n, split="valid", values={"loss": 1.0}, seconds=1.0, time=0.0) for n in (0, 10, 20)]
    restart = Restarted(attempt=1, max_restarts=3, from_step=10)
    assert evaluations([*evaluated, restart], Evaluated) == evaluated[:2]
    assert evaluations([*evaluated, restart, evaluated[2]], Evaluated) == evaluated


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    sink = Jsonl(tmp_path)
    with pytest.raises(DiskFull, match=r"events\.jsonl"):
        sink(step_done(1))
    sink.close()

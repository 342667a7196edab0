import os
import platform
import resource
import signal
import sys
import threading
import time
from types import MappingProxyType

import psutil
import pytest

from konvoi.errors import DataError, FleetError, KonvoiError, WorkerError
from konvoi.fleet import local
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import run
from konvoi.observe.events import Restarted, Warned, WorkerDied
from konvoi.state.record import pickled
from tests.fleet import entries


def start(agent, entry, payload=None, *, num_workers=2, max_restarts=0, emit=lambda event: None, **options):
    fleet = local(num_workers, max_restarts=max_restarts, start=options.pop("start", None))
    options = {"should_stop": lambda: 0, "newest_step": lambda: 0} | options
    return run(fleet, agent, pickled((entry, payload)), num_workers=num_workers, emit=emit, **options)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(pids, within_s=5.0):
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if not is_gone(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def pids_of(events):
    return [
        int(word) for event in events if isinstance(event, Warned) for word in event.message.split() if word != "pid"
    ]


# -- what a worker gets ---------------------------------------------------------------------------------------------


def test_results_come_in_the_workers_order(agent):
    assert start(agent, entries.who, "x", num_workers=3) == [(n, 3, "x") for n in range(3)]


def test_the_agent_has_one_thread_with_everything_loaded(agent):
    assert agent.hello()["num_threads"] == 1
    assert psutil.Process(agent.hello()["pid"]).num_threads() == 1  # and after forks


def test_a_closure_and_a_lambda_travel(agent):
    factor = 3
    assert start(agent, lambda place, x: (lambda y: y * factor)(x + place.worker), 1) == [3, 6]


def test_workers_stand_where_the_program_stands_now(agent, tmp_path, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_AGENT_STARTED", "yes")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    environment, cwd, path = start(agent, entries.standing, num_workers=1)[0]
    assert environment["SET_AFTER_THE_AGENT_STARTED"] == "yes"
    assert "HOME" not in environment
    assert environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert cwd == str(tmp_path)
    assert path == sys.path


def test_a_workers_input_is_empty(agent):
    assert start(agent, entries.read_input, num_workers=1) == [""]


def test_descriptors_above_1024_are_no_obstacle(agent):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("no more descriptors allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert start(agent, entries.who) == [(0, 2, None), (1, 2, None)]
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_runs_from_any_thread(agent):
    results = []
    thread = threading.Thread(target=lambda: results.extend(start(agent, entries.who)))
    thread.start()
    thread.join()
    assert results == [(0, 2, None), (1, 2, None)]


# -- exceptions -----------------------------------------------------------------------------------------------------


def test_an_exception_arrives_with_host_worker_step_and_its_own_traceback(agent):
    with pytest.raises(WorkerError) as caught:
        start(agent, entries.fail)
    error = caught.value
    assert (error.worker, error.step, error.host) == (1, 7, os.uname().nodename)
    assert "ValueError: the labels are of another planet" in error.message
    assert 'raise ValueError("the labels are of another planet")' in error.remote_traceback
    assert str(error).count("Traceback (most recent call last)") == 1
    assert "fleet/agent.py" not in error.remote_traceback


def test_a_broken_connection_does_not_hide_what_broke_it(agent):
    with pytest.raises(WorkerError, match="ValueError: the cause"):
        start(agent, entries.fail_after_a_consequence)


@pytest.mark.slow
def test_a_broken_connection_without_a_cause_is_reported(agent):
    with pytest.raises(WorkerError, match="Connection closed by peer"):
        start(agent, entries.only_a_consequence)


def test_an_error_of_ours_arrives_whole_and_says_where(agent):
    with pytest.raises(DataError) as caught:
        start(agent, entries.own_error, num_workers=1)
    assert (caught.value.found, caught.value.hint) == (0, "look at it")
    (note,) = caught.value.__notes__
    assert note.startswith(f"where: worker 0 on {os.uname().nodename}, step 3")
    assert "entries.py" in note


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (entries.unspeakable, "Unspeakable"),
        (entries.error_that_cannot_travel, "holds a function"),
        (entries.result_that_cannot_travel, "lambda"),
    ],
)
def test_an_exception_that_cannot_be_sent_is_told_all_the_same(agent, entry, says):
    with pytest.raises(WorkerError) as caught:
        start(agent, entry, num_workers=1)
    assert says in caught.value.remote_traceback


def test_an_error_that_only_the_program_knows_is_told_by_its_traceback(agent):
    def entry(place, payload):
        class Own(KonvoiError):
            pass

        raise Own("mine")

    with pytest.raises(WorkerError, match="mine"):
        start(agent, entry, num_workers=1)


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_restarted_with_its_island(agent):
    events = []
    assert start(agent, entries.die_until, 2, max_restarts=2, emit=events.append, newest_step=lambda: 40) == [2, 2]
    assert [type(event) for event in events] == [WorkerDied, Restarted] * 2
    assert (events[0].worker, events[0].reason) == (1, "signal SIGKILL")
    assert [(e.attempt, e.max_restarts, e.from_step) for e in events[1::2]] == [(1, 2, 40), (2, 2, 40)]


def test_it_is_restarted_as_often_as_stated_and_no_more(agent):
    events = []
    with pytest.raises(WorkerError, match=r"worker 1 died \(signal SIGKILL\); the island was restarted 1 time"):
        start(agent, entries.die_until, 9, max_restarts=1, emit=events.append)
    assert [type(event) for event in events] == [WorkerDied, Restarted, WorkerDied]


def test_a_worker_that_leaves_by_itself_has_died_too(agent):
    with pytest.raises(WorkerError, match=r"worker 0 died \(exit status 3\)"):
        start(agent, entries.leave, 3, num_workers=1)


def test_what_a_worker_said_before_its_death_arrives_before_the_news_of_it(agent):
    events = []
    with pytest.raises(WorkerError):
        start(agent, entries.talk_and_die, 300, num_workers=1, emit=events.append)
    assert [event.message for event in events[:-1]] == [str(number) for number in range(300)]
    assert isinstance(events[-1], WorkerDied)


def test_what_a_dead_worker_forked_is_gone(agent):
    events = []
    with pytest.raises(WorkerError):
        start(agent, entries.with_children, "die", num_workers=1, emit=events.append)
    assert len(pids_of(events)) == 3
    assert_gone(pids_of(events))


def test_killing_the_agent_leaves_nothing_behind_and_another_takes_its_place():
    events = []

    def on_event(event):
        events.append(event)
        if len(pids_of(events)) == 6 and len(events) == 2:
            os.kill(pids_of(events)[3], signal.SIGSTOP)  # a worker that cannot listen
            os.kill(own.hello()["pid"], signal.SIGKILL)

    with AgentHandle() as own:
        with pytest.raises(WorkerError, match="agent that owns the workers was killed"):
            start(own, entries.with_children, emit=on_event)
        assert_gone(pids_of(events))
        own.replace_if_gone()
        assert start(own, entries.who) == [(0, 2, None), (1, 2, None)]
        pid = own.process.pid
    assert_gone([pid])


# -- stopping -------------------------------------------------------------------------------------------------------


def test_a_request_to_stop_reaches_every_worker(agent):
    events = []
    assert start(agent, entries.wait_for_stop, emit=events.append, should_stop=lambda: int(len(events) == 2)) == [
        "saved",
        "saved",
    ]


def test_ending_at_once_does_not_wait_for_a_worker_that_was_stopped_or_does_not_listen(agent):
    events = []

    def should_stop():
        if len(pids_of(events)) < 6:
            return 0
        os.kill(pids_of(events)[0], signal.SIGSTOP)
        return 2

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start(agent, entries.with_children, emit=events.append, should_stop=should_stop)
    assert time.monotonic() - begin < 5
    assert_gone(pids_of(events))


def test_ending_before_the_first_worker_has_reported_leaves_none(agent):
    with pytest.raises(KeyboardInterrupt):
        start(agent, entries.with_children, should_stop=lambda: 2)
    assert psutil.Process(agent.hello()["pid"]).children() == []


def test_a_signal_to_every_process_is_left_to_the_parent(agent):
    # As a service manager sends it: a worker that died of it could save nothing.
    assert start(agent, entries.signalled_like_everybody, num_workers=1) == ["still here"]


def test_what_a_worker_forks_can_be_terminated(agent):
    assert start(agent, entries.terminate_a_child, num_workers=1) == [-signal.SIGTERM]


# -- size and start -------------------------------------------------------------------------------------------------

MACHINE = MappingProxyType({"device_kind": "cpu", "num_devices": 2, "num_cores": 2})


def test_more_workers_than_devices_are_refused():
    with pytest.raises(FleetError, match="more workers than devices") as caught:
        local(3).size(MACHINE)
    assert (caught.value.found, caught.value.expected) == ("3 workers", "at most 2 cores")
    assert local(3, oversubscribe=True).size(MACHINE) == 3


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(FleetError, match="no device of kind 'cuda'"):
        local(1, device="cuda").size(MACHINE)


def test_where_forking_is_not_safe_workers_are_spawned_and_it_says_so(agent, monkeypatch):
    monkeypatch.setattr(agent, "_hello", dict(agent.hello()) | {"can_fork": False})
    events = []
    with pytest.raises(WorkerError, match="ValueError: spawned"):
        start(agent, entries.say_spawned, num_workers=1, emit=events.append)
    assert ["spawned" in event.message for event in events] == [True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_workers_keep_the_memory_that_a_step_gives_back(agent):
    # 16 MB are 4,000 pages, which the kernel would clear again for every step.
    assert max(start(agent, entries.page_faults)) < 100

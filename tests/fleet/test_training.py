"""`train` on the fleet: what a user sees when a worker fails or dies in the middle of a run."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import FleetError, WorkerError
from konvoi.observe.events import Restarted, StepDone, WorkerDied
from tests.fleet.test_local import is_gone


class Samples:
    """Something to learn; `trap` is called with each index that is read."""

    def __init__(self, trap=lambda index: None):
        self.trap = trap

    def __len__(self):
        return 64

    def __getitem__(self, index):
        self.trap(index)
        sample = np.random.default_rng(int(index))
        return {"inputs": sample.normal(size=4).astype(np.float32), "labels": np.int64(index % 2)}


class Kept:
    """A sink that keeps the events."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    def close(self):
        pass

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def job(data=None, **fields):
    model = kv.models.mlp((8,), input_shape=(4,), num_outputs=2)
    defaults = {"steps": 6, "global_batch": 8, "validate_every": 0}
    return kv.Job(model=model, data=data or Samples(), objective=kv.objectives.classification(), **(defaults | fields))


def train(agent, folder, job, num_workers=2, *, max_restarts=3, **options):
    fleet = kv.fleet.local(num_workers, max_restarts=max_restarts, oversubscribe=True)
    kept = Kept()
    options = {"folder": folder, "sinks": [lambda _: kept], "agent": agent, "checkpoint_every": 2} | options
    return kept, lambda: kv.train(job, kv.Island(dp=num_workers), fleet, **options)


def die_once(marker, at_step=None):
    """A trap or a hook that kills its worker the first time."""
    parent = os.getpid()  # which reads a sample, too

    def trap(seen):
        if os.getpid() == parent:
            return
        if (at_step is None or seen.step == at_step) and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

    return trap


def test_a_worker_killed_in_the_middle_changes_nothing_but_the_time(agent, tmp_path):
    _, go = train(agent, tmp_path / "whole", job())
    whole = go()
    hooks = kv.Hooks(on_step=die_once(tmp_path / "died", at_step=5))
    kept, go = train(agent, tmp_path / "hit", job(hooks=hooks))
    run = go()
    assert [(e.worker, e.reason, e.step) for e in kept.of(WorkerDied)] == [(0, "signal SIGKILL", 5)]
    (restarted,) = kept.of(Restarted)
    assert restarted.from_step in (0, 2, 4)  # the newest that was whole: it is written beside the steps
    assert [e.step for e in kept.of(StepDone)] == [1, 2, 3, 4, 5, *range(restarted.from_step + 1, 7)]
    assert list(run.losses) == list(whole.losses)


def test_a_worker_that_dies_before_any_checkpoint_begins_again(agent, tmp_path):
    kept, go = train(agent, tmp_path, job(Samples(die_once(tmp_path / "died"))))
    go()
    assert [e.from_step for e in kept.of(Restarted)] == [0]
    assert [e.step for e in kept.of(StepDone)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_dies_again_and_again_ends_with_a_worker_error(agent, tmp_path):
    parent = os.getpid()

    def trap(index):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    kept, go = train(agent, tmp_path, job(Samples(trap)), max_restarts=2)
    with pytest.raises(WorkerError, match="restarted 2 times"):
        go()
    assert len(kept.of(WorkerDied)) == 3
    assert kept.events[-1].reason == "failed"


def test_a_users_exception_comes_once_as_its_own_and_not_as_a_broken_connection(agent, tmp_path):
    def trap(index):
        if index == 7:  # which one worker reads
            raise KeyError("no such label")

    kept, go = train(agent, tmp_path, job(Samples(trap)))
    with pytest.raises(WorkerError) as caught:
        go()
    assert "KeyError: 'no such label'" in caught.value.message
    assert caught.value.remote_traceback.count("Traceback (most recent call last)") == 1
    assert caught.value.step is not None
    assert kept.events[-1].reason == "failed"
    assert not kept.of(WorkerDied)


def test_the_first_error_in_a_hook_ends_the_run(agent, tmp_path):
    def on_step(done):
        if done.step == 2:
            raise RuntimeError("a hook of the user's")

    _, go = train(agent, tmp_path, job(hooks=kv.Hooks(on_step=on_step)))
    with pytest.raises(WorkerError, match="a hook of the user's") as caught:
        go()
    assert (caught.value.worker, caught.value.step) == (0, 2)


def test_an_error_in_a_loader_process_arrives_with_its_traceback(agent, tmp_path):
    def trap(index):
        if index == 7:
            raise KeyError("no such label")

    _, go = train(agent, tmp_path, job(Samples(trap), num_loaders=1))
    with pytest.raises(WorkerError, match="no such label") as caught:
        go()
    assert "test_training.py" in caught.value.remote_traceback


def test_more_workers_than_devices_are_refused_before_any_worker_starts(agent, tmp_path):
    fleet = kv.fleet.local(1000)
    with pytest.raises(FleetError, match="more workers than devices"):
        kv.train(job(), kv.Island(dp=1000), fleet, folder=tmp_path, agent=agent, sinks=())
    assert not list(tmp_path.iterdir())


def test_it_runs_twice_and_in_a_thread_that_is_not_the_main_one(agent, tmp_path):
    runs = []
    _, go = train(agent, tmp_path, job(steps=2))
    thread = threading.Thread(target=lambda: runs.extend([go(), go()]))
    thread.start()
    thread.join()
    assert runs[0].folder != runs[1].folder
    assert list(runs[0].losses) == list(runs[1].losses)


def test_a_stop_while_the_data_is_prepared_leaves_no_agent(tmp_path, monkeypatch):
    started = []
    init = kv.fleet.crew.AgentHandle._start
    monkeypatch.setattr(
        kv.fleet.crew.AgentHandle, "_start", lambda self: (init(self), started.append(self.process.pid))[0]
    )

    class Interrupted:
        def prepare(self):
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        kv.train(job(Interrupted()), folder=tmp_path)
    assert len(started) == 1
    assert is_gone(started[0])
    assert time.monotonic() - begin < 1.5  # torch is not waited for
    assert not list(tmp_path.iterdir())

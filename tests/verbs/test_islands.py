"""Islands of one computer, over real sockets: they agree, and one that dies comes back alone."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter

import psutil
import pytest
import torch

import konvoi as kv
from konvoi.errors import PlanError
from konvoi.observe.events import (
    Agreed,
    Averaged,
    Evaluated,
    Restarted,
    RunEnded,
    StateFetched,
    StepDone,
    Warned,
    WorkerDied,
)
from konvoi.observe.sinks.jsonl import read_events
from konvoi.plan import compress
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.presets import diloco, local_sgd, parameter_server
from konvoi.state import record, shards
from tests import small


def weights(folder):
    _, newest = record.whole_checkpoints(folder / "checkpoints")[-1]
    model = kv.models.mlp((12, 12), input_shape=(6,), num_outputs=2)()
    state = {f"model.{name}": torch.zeros_like(p) for name, p in model.named_parameters()}
    shards.read(newest, state, num_workers=1)
    return state


def islands(folder, number):
    return [folder, *(folder / "islands" / f"island-{n}" for n in range(1, number))]


def train(tmp_path, plan, number=2, name="run", **fields):
    workers = number * (plan.island.num_workers if isinstance(plan, Plan) else 1)
    fleet = kv.fleet.local(workers, islands=number, oversubscribe=True)
    kv.train(small.job(**fields), plan, fleet, folder=tmp_path, name=name, sinks=[], checkpoint_every=0)
    return islands(tmp_path / name, number)


def test_islands_that_agree_end_with_the_same_weights(tmp_path):
    plan = kv.Island() | diloco(every=5, compression=compress.int8())
    first, second = (weights(folder) for folder in train(tmp_path, plan, validate_every=20))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for folder in islands(tmp_path / "run", 2):
        told = [type(event) for event in read_events(folder) if isinstance(event, (Agreed, Evaluated))]
        assert told == [Evaluated, *[Agreed] * 4, Evaluated]  # the last, of what was agreed on
        (end,) = [event for event in read_events(folder) if isinstance(event, RunEnded)]
        assert (end.reason, end.step) == ("finished", 20)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "run" / "convoy").rglob("key.pem"))


@pytest.mark.slow
@pytest.mark.parametrize("island", [kv.Island(dp=2), kv.Island(fsdp=2, accumulate=2)], ids=str)
def test_islands_of_several_workers_learn_what_islands_of_one_do(tmp_path, island):
    convoy = diloco(every=5, fragments=1)
    alone = [weights(folder) for folder in train(tmp_path, kv.Island() | convoy, name="alone")]
    together = [weights(folder) for folder in train(tmp_path, island | convoy)]
    assert all(torch.equal(together[0][name], together[1][name]) for name in together[0])
    for name, expected in alone[0].items():
        torch.testing.assert_close(together[0][name], expected, rtol=1e-4, atol=1e-6, msg=name)


def alone(tmp_path, **fields):
    kv.train(small.job(**fields), kv.Island(), folder=tmp_path, name="alone", sinks=[], checkpoint_every=0)
    return weights(tmp_path / "alone")


@pytest.mark.parametrize(
    "convoy",
    [
        pytest.param(parameter_server(), marks=pytest.mark.slow),
        pytest.param(parameter_server(servers=("left", "right")), marks=pytest.mark.slow),
        pytest.param(Convoy(every=1, updates="gradients"), marks=pytest.mark.slow),
        pytest.param(Convoy(every=1, servers=("server",)), marks=pytest.mark.slow),
    ],
    ids=lambda convoy: f"{convoy.updates} {convoy.servers}",
)
def test_islands_that_agree_at_every_step_learn_what_one_does_with_the_whole_batch(tmp_path, convoy):
    inside = kv.optimizers.adamw(lr=0.01) if convoy.updates == "gradients" else kv.optimizers.sgd(lr=0.1)
    clip = 1.0 if convoy.updates == "gradients" else None  # behind the sum
    fields = {"optimizer": inside, "schedule": kv.schedules.cosine(warmup=0.2), "clip_grad_norm": clip}
    expected = alone(tmp_path, **fields)
    first, second = (weights(folder) for folder in train(tmp_path, kv.Island() | convoy, **fields))
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=name)


def slowly(done):
    """So that there is time for a kill."""
    time.sleep(0.1)


@contextlib.contextmanager
def kill(number, events, *, at_step, silent_s=0.0):
    """With -9 the worker of one island or server, by its number, when the first island is at this step; before that it
    says nothing for `silent_s`, as who comes back soon enough is waited for."""
    killed = []
    before = psutil.Process().children()  # the test bench's own agent among them

    def wait():
        until = time.monotonic() + 60
        while time.monotonic() < until and not killed:
            if events.exists() and f'"step":{at_step}' in events.read_text().replace(" ", ""):
                children = [one for one in psutil.Process().children() if one not in before]
                agents = [one for one in children if "konvoi.fleet.agent" in one.cmdline()]
                agent = sorted(agents, key=lambda one: (one.create_time(), one.pid))[number]
                (worker,) = agent.children()
                killed.append(worker.pid)
                worker.suspend()
                time.sleep(silent_s)
                worker.kill()
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()
    assert killed


@pytest.mark.slow
@pytest.mark.parametrize(
    "convoy", [Convoy(every=5, deadline_s=3.0), Convoy(every=5, deadline_s=3.0, updates="gradients")], ids=repr
)
def test_an_island_that_is_killed_comes_back_alone_and_fetches_what_was_agreed(tmp_path, convoy):
    with kill(1, tmp_path / "run" / "islands" / "island-1" / "events.jsonl", at_step=12):
        folders = train(tmp_path, kv.Island() | convoy, steps=60, validate_every=60, hooks=kv.Hooks(on_step=slowly))
    quiet, hit = ([*read_events(folder)] for folder in folders)
    assert not [event for event in quiet if isinstance(event, (WorkerDied, Restarted))]
    assert [event for event in hit if isinstance(event, Restarted)]
    assert [event.reason for events in (quiet, hit) for event in events if isinstance(event, RunEnded)] == [
        "finished"
    ] * 2
    steps = [event.step for event in quiet if isinstance(event, StepDone)]
    assert steps == list(range(1, 61))
    # Whoever is back has all of it, the optimizer's state too: else its next update is found to come from elsewhere.
    fetched = [sum(isinstance(event, StateFetched) for event in events) for events in (quiet, hit)]
    assert fetched == [0, 1]
    firsts = [sum(isinstance(event, Evaluated) and event.step == 0 for event in events) for events in (quiet, hit)]
    assert firsts == [1, 1]  # who comes late has nothing of its own to show
    back = next(n for n, event in enumerate(hit) if isinstance(event, StateFetched))
    together = [event for event in hit[back:] if isinstance(event, Agreed) and len(event.counted) == 2]
    assert len(together) >= 3


def resume(tmp_path, plan, number=2, **fields):
    fleet = kv.fleet.local(number, islands=number, oversubscribe=True)
    kv.train(small.job(**fields), plan, fleet, folder=tmp_path, resume="run", sinks=[], checkpoint_every=0)
    return islands(tmp_path / "run", number)


@pytest.mark.slow
@pytest.mark.parametrize("convoy", [Convoy(every=5), parameter_server()], ids=repr)
def test_a_run_that_has_ended_goes_on_as_if_it_had_not(tmp_path, convoy):
    """With an optimizer that remembers nothing: each island's own memory is that of one island."""
    sgd = {"optimizer": kv.optimizers.sgd(lr=0.1), "schedule": kv.schedules.constant()}
    plan = kv.Island() | convoy
    expected = weights(train(tmp_path, plan, name="whole", steps=20, **sgd)[0])
    train(tmp_path, plan, steps=10, **sgd)
    folders = resume(tmp_path, plan, steps=20, **sgd)
    for folder in folders:
        found = weights(folder)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)
        steps = [event.step for event in read_events(folder) if isinstance(event, StepDone)]
        assert steps == list(range(1, 21))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_islands_from_the_farthest_of_them(tmp_path):
    plan = kv.Island() | Convoy(every=5)
    train(tmp_path, plan, steps=10)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if the first had been killed before it saved anything
    folders = resume(tmp_path, plan, number=4, steps=20)
    first, *others = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    for folder in folders[2:]:
        assert [event.step for event in read_events(folder) if isinstance(event, StepDone)] == list(range(11, 21))


@pytest.mark.slow
def test_a_stop_agrees_and_saves_and_the_run_goes_on(tmp_path):
    plan = kv.Island() | Convoy(every=1000)

    def on_step(done):
        time.sleep(0.05)
        if done.step == 12:
            with contextlib.suppress(FileExistsError):  # once, and by one of them
                (tmp_path / "asked").touch(exist_ok=False)
                os.kill(parent, signal.SIGINT)

    parent = os.getpid()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=on_step))
    ended = [[*read_events(folder)] for folder in islands(tmp_path / "run", 2)]
    last = max(event.step for events in ended for event in events if isinstance(event, RunEnded))
    assert all(sum(isinstance(event, Agreed) for event in events) == 1 for events in ended)
    stopped = [weights(folder) for folder in islands(tmp_path / "run", 2)]
    assert all(torch.equal(stopped[0][name], stopped[1][name]) for name in stopped[0])
    folders = resume(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=on_step))
    for folder in folders:
        steps = [event.step for event in read_events(folder) if isinstance(event, StepDone)]
        assert [step for step in steps if step > last] == list(range(last + 1, 61))


@pytest.mark.slow
def test_with_a_witness_one_of_two_islands_goes_on_alone(tmp_path):
    plan = kv.Island() | Convoy(every=2, deadline_s=3.0, witness="witness")
    with kill(1, tmp_path / "run" / "events.jsonl", at_step=12, silent_s=5.0):
        folders = train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=slowly))
    found = [*read_events(folders[0])]
    rounds = [event.counted for event in found if isinstance(event, Agreed)]
    assert sum(len(counted) == 2 for counted in rounds[:5]) >= 3  # a slow host may miss a deadline at the start
    assert {"island-0": 8} in rounds[5:]  # two steps' samples, of one of two
    assert [event.step for event in found if isinstance(event, StepDone)] == list(range(1, 61))


@pytest.mark.slow
def test_the_one_that_decides_goes_on_without_the_other(tmp_path):
    plan = kv.Island() | Convoy(every=2, deadline_s=3.0, deciders=("island-0",))
    with kill(1, tmp_path / "run" / "islands" / "island-1" / "events.jsonl", at_step=12, silent_s=5.0):
        folders = train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=slowly))
    found = [*read_events(folders[0])]
    assert [event.step for event in found if isinstance(event, StepDone)] == list(range(1, 61))
    assert {"island-0": 8} in [event.counted for event in found if isinstance(event, Agreed)][5:]
    assert any(isinstance(event, Restarted) for event in read_events(folders[1]))


class Unequally:
    """The first process to ask is three times as slow."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, done):
        try:
            (self.folder / "slow").symlink_to(str(os.getpid()))
        except FileExistsError:
            time.sleep(0.05 if str((self.folder / "slow").readlink()) != str(os.getpid()) else 0.15)


@pytest.mark.slow
@pytest.mark.parametrize("convoy", [kv.async_sgd(every=2, outer_lr=0.5), kv.stale_synchronous(every=2)], ids=repr)
def test_nobody_waits_for_a_slow_island_where_decisions_are_of_whoever_is_there(tmp_path, convoy):
    fields = {"steps": 60, "validate_every": 60, "optimizer": kv.optimizers.sgd(lr=0.1)}
    folders = train(tmp_path, kv.Island() | convoy, hooks=kv.Hooks(on_step=Unequally(tmp_path)), **fields)
    found = [[*read_events(folder)] for folder in folders]
    steps = [[event.step for event in events if isinstance(event, StepDone)] for events in found]
    quick, slow = sorted(steps, key=len, reverse=True)
    assert quick == list(range(1, 61))
    assert len(slow) < 55
    assert slow[-1] == 60
    assert slow == sorted({*slow})  # on the convoy's schedule, with gaps
    counted = Counter()
    for event in found[0]:
        if isinstance(event, Agreed):
            counted.update(event.counted)
    assert counted.total() > 4 * len(quick)  # samples a step: more than the quick one's, and nearly all of those
    assert max(counted.values()) > 0.8 * 4 * len(quick)
    for events in found:
        first, *_, last = [event.values["loss"] for event in events if isinstance(event, Evaluated)]
        assert last < 0.8 * first
        assert not [event for event in events if isinstance(event, StateFetched)]  # what overtakes is waited for


class SlowToRead(small.Samples):
    """A step of four takes a twentieth of a second."""

    def __getitem__(self, index):
        time.sleep(0.0125)
        return super().__getitem__(index)


@pytest.mark.slow
def test_who_is_killed_when_the_others_have_ended_ends_without_them(tmp_path):
    def wait():
        events = [folder / "events.jsonl" for folder in islands(tmp_path / "run", 2)]
        until = time.monotonic() + 60
        while time.monotonic() < until and not any(one.exists() and "RunEnded" in one.read_text() for one in events):
            time.sleep(0.05)
        os.kill(int((tmp_path / "slow").readlink().name), signal.SIGKILL)

    thread = threading.Thread(target=wait)
    thread.start()
    plan = kv.Island() | Convoy(every=5, deadline_s=1.0, ahead=60)
    folders = train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=Unequally(tmp_path)))
    thread.join()
    found = [[*read_events(folder)] for folder in folders]
    assert sorted(events[-1].reason for events in found) == ["finished", "stopped"]
    told = [event.message for events in found for event in events if isinstance(event, Warned)]
    assert any("the others ended before" in message for message in told)


@pytest.mark.slow
def test_where_links_are_quick_rounds_get_short_and_what_is_left_at_the_end_is_agreed_on(tmp_path):
    plan = kv.Island() | kv.adaptive(every=16, max_comm_fraction=0.5)
    folders = train(tmp_path, plan, steps=43, data=(SlowToRead(), small.DATA[1]))
    found = [[*read_events(folder)] for folder in folders]
    chosen = [[(event.round, event.every) for event in events if isinstance(event, Agreed)] for events in found]
    assert chosen[0] == chosen[1]
    every = [every for _, every in chosen[0] if every]
    assert min(every) < 16
    samples = [sum(sum(event.counted.values()) for event in events if isinstance(event, Agreed)) for events in found]
    assert samples == [43 * small.job().global_batch] * 2
    first, second = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_where_rounds_go_by_time_a_slow_island_sends_what_it_has(tmp_path):
    plan = kv.Island() | Convoy(every=4, pace="time", ahead=4, deadline_s=10.0)
    folders = train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=Unequally(tmp_path)))
    found = [[*read_events(folder)] for folder in folders]
    steps = [[event.step for event in events if isinstance(event, StepDone)] for events in found]
    quick, slow = sorted(steps, key=len, reverse=True)
    assert quick == list(range(1, 61))
    assert len(slow) < 40
    rounds = [event for event in found[0] if isinstance(event, Agreed)]
    both = [event for event in rounds if len(event.counted) == 2]
    assert len(both) >= len(rounds) - 2  # the slow one's in each, as long as both are there
    assert sum(min(event.counted.values()) < max(event.counted.values()) for event in both) > len(both) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "convoy", [parameter_server(), Convoy(every=2, servers=("server",)), Convoy(every=2, witness="w")], ids=repr
)
def test_who_helps_and_is_killed_comes_back_and_the_islands_go_on(tmp_path, convoy):
    with kill(2, tmp_path / "run" / "events.jsonl", at_step=12):
        folders = train(tmp_path, kv.Island() | convoy, steps=40, hooks=kv.Hooks(on_step=slowly))
    helper = [*read_events(tmp_path / "run" / "islands" / convoy.helpers[0])]
    assert [event for event in helper if isinstance(event, Restarted)]
    last = max(event.round for event in helper if isinstance(event, Agreed))
    assert last >= 40 // convoy.every - 1  # it has followed to the end
    for folder in folders:
        found = [*read_events(folder)]
        assert not [event for event in found if isinstance(event, (WorkerDied, Restarted))]
        assert [event.step for event in found if isinstance(event, StepDone)] == list(range(1, 41))
    rounds = [event for event in read_events(folders[0]) if isinstance(event, Agreed)]
    assert [event.round for event in rounds] == list(range(1, 1 + 40 // convoy.every))
    assert all(len(event.counted) == 2 for event in rounds)
    first, second = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("plan", "number"),
    [
        (kv.Island(dp=2) | parameter_server(), 2),
        (kv.Island() | local_sgd(), 1),
        (kv.Island() | local_sgd(), 3),
    ],
)
def test_what_a_convoy_cannot_do_is_said_before_anything_starts(tmp_path, plan, number):
    with pytest.raises(PlanError):
        train(tmp_path, plan, number)
    assert not (tmp_path / "run").exists()


def averaged(folder):
    return [event.peer for event in read_events(folder) if isinstance(event, Averaged)]


@pytest.mark.slow
def test_islands_that_gossip_end_with_the_mean_of_all(tmp_path):
    plan = kv.Island() | kv.gossip(every=2)
    folders = train(tmp_path, plan, 3, global_batch=9, hooks=kv.Hooks(on_step=slowly))
    first, *others = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    assert sum(len(averaged(folder)) for folder in folders) >= 6
    for folder in folders:
        steps = [event.step for event in read_events(folder) if isinstance(event, StepDone)]
        assert steps == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("codec", [compress.none(), compress.int8()], ids=str)
def test_gossip_outlives_whoever_is_killed_and_who_is_back_goes_on_from_a_neighbours_weights(tmp_path, codec):
    convoy = kv.gossip(every=2, compression=codec)
    with kill(0, tmp_path / "run" / "events.jsonl", at_step=30):
        folders = train(tmp_path, kv.Island() | convoy, 3, steps=150, global_batch=9, hooks=kv.Hooks(on_step=slowly))
    hit, *quiet = ([*read_events(folder)] for folder in folders)
    assert any(isinstance(event, Restarted) for event in hit)
    for events in quiet:
        assert not [event for event in events if isinstance(event, (WorkerDied, Restarted))]
        assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 151))
    behind = next(n for n, event in enumerate(hit) if isinstance(event, Restarted))
    steps = [event.step for event in hit[behind:] if isinstance(event, StepDone)]
    assert steps[0] > 15  # there is no checkpoint to go on from
    assert steps[-1] == 150
    first, *others = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.slow
def test_islands_of_several_workers_gossip_and_stop_and_go_on(tmp_path):
    plan, parent = kv.Island(fsdp=2) | kv.gossip(every=3), os.getpid()

    def on_step(done):
        time.sleep(0.02)
        if done.step == 12:
            with contextlib.suppress(FileExistsError):  # once, and by one of them
                (tmp_path / "asked").touch(exist_ok=False)
                os.kill(parent, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=on_step))
    fleet = kv.fleet.local(4, islands=2, oversubscribe=True)
    job = small.job(steps=60, hooks=kv.Hooks(on_step=on_step))
    kv.train(job, plan, fleet, folder=tmp_path, resume="run", sinks=[], checkpoint_every=0)
    for folder in islands(tmp_path / "run", 2):
        steps = [event.step for event in read_events(folder) if isinstance(event, StepDone)]
        assert steps[-1] == 60
        assert len(steps) < 80
    first, second = (weights(folder) for folder in islands(tmp_path / "run", 2))
    assert all(torch.equal(first[name], second[name]) for name in first)

"""Islands of one computer, over real sockets: they agree, and one that dies comes back alone."""

import os
import signal
import time

import pytest
import torch

import konvoi as kv
from konvoi.errors import PlanError
from konvoi.observe.events import Restarted, RunEnded, StepDone, WorkerDied
from konvoi.observe.sinks.jsonl import read_events
from konvoi.plan import compress
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.presets import diloco, local_sgd, parameter_server
from konvoi.state import shards
from tests import small


def weights(folder):
    (newest,) = (folder / "checkpoints").glob("step-*")
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
    first, second = (weights(folder) for folder in train(tmp_path, plan))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for folder in islands(tmp_path / "run", 2):
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


class Slowly:
    """So that there is time for a kill; tells where its process is."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, done):
        (self.folder / f"{os.getpid()}.pid").touch()
        time.sleep(0.1)


@pytest.mark.slow
def test_an_island_that_is_killed_comes_back_alone_and_fetches_what_was_agreed(tmp_path):
    import threading

    (tmp_path / "pids").mkdir()
    killed = []

    def kill():
        until = time.monotonic() + 60
        while time.monotonic() < until and not killed:
            found = sorted(int(path.stem) for path in (tmp_path / "pids").iterdir())
            events = tmp_path / "run" / "islands" / "island-1" / "events.jsonl"
            if len(found) == 2 and events.exists() and '"step":12' in events.read_text().replace(" ", ""):
                (pid,) = [pid for pid in found if _is_island_1(pid)]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.05)

    def _is_island_1(pid):
        # The second agent's worker: agents are started in the order of the islands.
        import psutil

        parents = sorted(psutil.Process(int(p.stem)).ppid() for p in (tmp_path / "pids").iterdir())
        return psutil.Process(pid).ppid() == parents[1]

    thread = threading.Thread(target=kill)
    thread.start()
    plan = kv.Island() | Convoy(every=5, deadline_s=3.0)
    folders = train(tmp_path, plan, steps=60, hooks=kv.Hooks(on_step=Slowly(tmp_path / "pids")))
    thread.join()
    assert killed
    quiet, hit = ([*read_events(folder)] for folder in folders)
    assert not [event for event in quiet if isinstance(event, (WorkerDied, Restarted))]
    assert [event for event in hit if isinstance(event, Restarted)]
    assert [event.reason for events in (quiet, hit) for event in events if isinstance(event, RunEnded)] == [
        "finished"
    ] * 2
    steps = [event.step for event in quiet if isinstance(event, StepDone)]
    assert steps == list(range(1, 61))


@pytest.mark.parametrize(
    ("plan", "number"),
    [
        (kv.Island() | parameter_server(), 2),
        (kv.Island() | kv.async_sgd(), 2),
        (kv.Island() | kv.stale_synchronous(), 2),
        (kv.Island() | kv.gossip(), 2),
        (kv.Island() | local_sgd(), 1),
        (kv.Island() | local_sgd(), 3),
    ],
)
def test_what_a_convoy_cannot_do_is_said_before_anything_starts(tmp_path, plan, number):
    with pytest.raises(PlanError):
        train(tmp_path, plan, number)
    assert not (tmp_path / "run").exists()

"""A run that was killed ends as the run that was not."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import konvoi as kv
from konvoi.errors import WorkerError
from konvoi.observe.events import Restarted, StepDone
from tests import small
from tests.killed import slowly

ROOT = Path(__file__).parents[1]


# -- the whole program is killed ---------------------------------------------------------------------------------------


def start(folder, axis):
    command = [sys.executable, "-m", "tests.killed", str(folder), axis]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def num_steps(folder):
    return sum(b'"StepDone"' in line for line in (folder / "run/events.jsonl").read_bytes().splitlines())


def wait_for(process, condition):
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def kill(folder, axis, moment):
    """Start, or go on, and kill with -9 at a random moment; returns whether it was killed before its end."""
    process = start(folder, axis)
    events = folder / "run/events.jsonl"
    before = num_steps(folder) if events.exists() else 0
    after = moment.choice(["steps", "steps", "saving"])
    wanted = before + moment.randint(1, 6)
    time_is_up = wait_for(process, lambda: events.exists() and num_steps(folder) >= wanted)
    if time_is_up and after == "saving":
        time_is_up = wait_for(process, lambda: any((folder / "run/checkpoints").glob(".step-*.partial")))
    time.sleep(moment.random() * (0.12 if after == "saving" else 0.03))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return time_is_up


def goes_the_same_way(agent, folder, axis, *, num_kills, seed):
    never_killed = small.train(
        agent, folder, small.job(model=small.wobbly, ema=0.9), kv.Island(**{axis: 2}), name="never-killed"
    )
    moment, kills = random.Random(seed), 0
    for _ in range(num_kills):
        kills += kill(folder, axis, moment)
    last = start(folder, axis)
    _, message = last.communicate()
    assert last.returncode == 0, message.decode()
    small.assert_same(kv.Run(folder / "run"), never_killed)
    return kills


@pytest.mark.slow
def test_a_program_killed_at_a_random_moment_ends_as_if_it_never_was(agent, tmp_path):
    assert goes_the_same_way(agent, tmp_path, "dp", num_kills=1, seed=1) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("axis", ["dp", "fsdp"])
def test_a_program_killed_at_ten_random_moments_ends_as_if_it_never_was(agent, tmp_path, axis):
    assert goes_the_same_way(agent, tmp_path, axis, num_kills=10, seed=10) >= 5


# -- one worker is killed ----------------------------------------------------------------------------------------------


class Deadly:
    """An objective that ends its process once: `worker`'s, in its `at`-th step or while a checkpoint is written."""

    def __init__(self, marker, *, worker, at, while_saving):
        self.marker, self.worker, self.at, self.while_saving = marker, worker, at, while_saving
        self.num_steps, self.objective = 0, kv.objectives.classification()

    def __call__(self, model, batch):
        self.num_steps += model.training
        is_me = torch.distributed.get_rank() == self.worker
        if is_me and self.num_steps == self.at and not self.marker.exists():
            self.marker.touch()
            if self.while_saving:
                threading.Thread(target=self.end_while_saving, daemon=True).start()
            else:
                self.end()
        return self.objective(model, batch)

    def end_while_saving(self):
        while not any((self.marker.parent / "run/checkpoints").glob(".step-*.partial")):
            time.sleep(0.0005)
        self.end()

    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("worker", "while_saving"),
    [
        (0, True),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_as_if_nothing_was(agent, tmp_path, worker, while_saving):
    plan = kv.Island(fsdp=2) if worker else kv.Island(dp=2)
    calm = small.train(agent, tmp_path, small.job(model=small.wobbly), plan, name="calm")
    deadly = Deadly(tmp_path / "died", worker=worker, at=8, while_saving=while_saving)
    hooks = kv.Hooks(on_step=slowly)
    run = small.train(agent, tmp_path, small.job(model=small.wobbly, objective=deadly, hooks=hooks), plan)
    assert deadly.marker.exists()
    assert [event.attempt for event in small.events(run, Restarted)] == [1]
    small.assert_same(run, calm)


# -- on another number of workers --------------------------------------------------------------------------------------


def stop_after(step):
    def on_step(done):
        if done.step == step:
            raise InterruptedError

    return kv.Hooks(on_step=on_step)


@pytest.fixture(scope="module")
def reference(agent, tmp_path_factory):
    """The run that was never interrupted, and what each step of it saw."""
    return small.train(agent, tmp_path_factory.mktemp("reference"), small.job())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (kv.Island(dp=2), kv.Island()),
        pytest.param(kv.Island(dp=2), kv.Island(fsdp=3), marks=pytest.mark.slow),
        pytest.param(kv.Island(fsdp=2), kv.Island(dp=2, fsdp=2), marks=pytest.mark.slow),
        (kv.Island(fsdp=2), kv.Island(dp=3, accumulate=2)),
        (kv.Island(dp=2), kv.Island(dp=4)),
        (kv.Island(pp=2), kv.Island(dp=2)),
        pytest.param(kv.Island(dp=2, pp=2), kv.Island(fsdp=2), marks=pytest.mark.slow),
        pytest.param(kv.Island(fsdp=2), kv.Island(pp=2, schedule="gpipe"), marks=pytest.mark.slow),
    ],
    ids=["dp2-1", "dp2-fsdp3", "fsdp2-dp2xfsdp2", "fsdp2-dp3", "dp2-dp4", "pp2-dp2", "dp2xpp2-fsdp2", "fsdp2-pp2"],
)
def test_a_run_goes_on_in_the_middle_of_an_epoch_on_another_number_of_workers(
    agent, tmp_path, reference, first, second
):
    with pytest.raises(WorkerError, match="InterruptedError"):
        small.train(agent, tmp_path, small.job(hooks=stop_after(11)), first)
    run = small.train(agent, tmp_path, small.job(), second, resume="run")
    assert [done.step for done in small.events(run, StepDone)] == [*range(1, 12), *range(10, 21)]
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(reference.losses), rtol=1e-5, atol=1e-6)
    for name, tensor in small.state(reference).items():
        torch.testing.assert_close(small.state(run)[name], tensor, rtol=1e-4, atol=1e-5)


class Seen:
    """An objective that writes down which samples its worker was given at which step."""

    def __init__(self, folder):
        self.folder, self.objective, self.num_steps = folder, kv.objectives.classification(), 0

    def __call__(self, model, batch):
        path = self.folder / f"{os.getpid()}-{self.num_steps}"
        self.num_steps += 1
        torch.save(batch["inputs"], path)
        return self.objective(model, batch)


def samples_seen(folder, step):
    """Over all workers, in no order."""
    found = [torch.load(path) for path in folder.iterdir() if path.name.endswith(f"-{step}")]
    return torch.cat(found).sort(dim=0).values


def test_the_samples_of_a_resumed_step_are_those_of_the_run_never_interrupted(agent, tmp_path):
    folders = [tmp_path / name for name in ("whole", "first", "second")]
    for folder in folders:
        folder.mkdir()
    small.train(agent, tmp_path, small.job(objective=Seen(folders[0])), name="whole")
    with pytest.raises(WorkerError):
        small.train(agent, tmp_path, small.job(objective=Seen(folders[1]), hooks=stop_after(10)))
    small.train(agent, tmp_path, small.job(objective=Seen(folders[2])), kv.Island(dp=3), resume="run")
    for step in range(9, 20):  # 9 were saved: the tenth, number 9, is the first of the second run
        assert torch.equal(samples_seen(folders[0], step), samples_seen(folders[2], step - 9))

"""Programs that the tests start as a user would, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

SOURCE = Path(__file__).resolve().parents[2] / "src"

# No main guard; a lambda, a closure and a class of the script's own; `own_layers` lies beside it.
PROGRAM = """
import os, sys, time
import konvoi as kv
import numpy as np

rng = np.random.default_rng(0)
inputs, labels = rng.normal(size=(64, 4)), rng.integers(0, 2, 64)


class Shifted:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"inputs": inputs[index].astype("float32"), "labels": labels[index]}


def slowly(seconds):
    def on_step(done):
        if done.step == 3:
            open("reached", "w").close()
        time.sleep(seconds * (done.step >= 3))
    return on_step


def job(*, seconds=0.0, model=kv.models.mlp((8,), input_shape=(4,), num_outputs=2), data=Shifted(), **fields):
    return kv.Job(model=model, data=data, objective=kv.objectives.classification(), global_batch=8,
                  validate_every=0, hooks=kv.Hooks(on_step=slowly(seconds)), **({"steps": 4} | fields))


def train(job, plan=kv.Island(dp=2), **options):
    fleet = kv.fleet.local(plan.num_workers, oversubscribe=True)
    return kv.train(job, plan, fleet, **({"checkpoint_every": 0} | options))
"""


class Program:
    """A Python process, everything that descends from it (found by a mark in the environment), and its folder."""

    def __init__(self, folder, text="", *, command=None, **options):
        self.folder, self.mark = folder, uuid.uuid4().hex
        (folder / "program.py").write_text(PROGRAM + text)
        environment = os.environ | {"KONVOI_TEST_MARK": self.mark, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command or [sys.executable, "program.py"],
            cwd=folder,
            env=environment,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
            | options,
        )

    def wait_for(self, name, within_s=60.0):
        deadline = time.monotonic() + within_s
        while not (self.folder / name).exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"no {name} in {within_s} s"
            time.sleep(0.02)

    def living(self):
        """Every process of this program that is no zombie, the program itself included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("KONVOI_TEST_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def assert_all_gone(self, within_s=5.0):
        deadline = time.monotonic() + within_s
        while left := self.living():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)

    def end(self, within_s=60.0):
        """Wait for its end; returns exit status, stdout and stderr."""
        out, err = self.process.communicate(timeout=within_s)
        return self.process.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.living():
            process.send_signal(signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self.process.wait()

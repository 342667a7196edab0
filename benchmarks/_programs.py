"""Programs under measurement: how each is started, and the trace that it leaves.

Konvoi and its peers each run as a user would start them: a fresh command, one thread a worker, an empty folder as
working directory. Whatever it starts is ended when the measurement is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import _work

HERE = Path(__file__).parent
PEERS = ("ddp", "hf_trainer", "ray_train", "plain_loop")  # programs that call `_work.leave_trace`


@dataclass(frozen=True)
class Order:
    """What a program is asked to do. `work` names a value of `_work.py`."""

    work: str
    steps: int
    workers: int = 2
    checkpoint_every: int | None = None

    def arguments(self) -> list[str]:
        """The arguments that our own script and every peer understand."""
        every = [] if self.checkpoint_every is None else ["--checkpoint-every", str(self.checkpoint_every)]
        return ["--work", self.work, "--steps", str(self.steps), "--workers", str(self.workers), *every]


@dataclass(frozen=True)
class Trace:
    """One run. Times are seconds since the epoch; `ends[k]` is the end of optimizer step k + 1."""

    launched: float
    ends: tuple[float, ...]
    losses: tuple[float, ...]
    blocked: tuple[tuple[int, float], ...] = ()  # (step, seconds that training stood still in a save)
    num_parameters: int = 0

    def span_s(self, first: int, last: int) -> float:
        """Wall time of the steps first + 1 ... last, with everything that lies between them."""
        return self.ends[last - 1] - self.ends[first - 1]

    def first_step_s(self) -> float:
        """From the command to the end of the first optimizer step."""
        return self.ends[0] - self.launched

    def blocked_s(self, first: int, last: int) -> float:
        return sum(seconds for step, seconds in self.blocked if first < step <= last)


def run(program: str, order: Order, *, timeout_s: float = 3600.0) -> Trace:
    """Start a program, wait for it and read what it left. Raises: RuntimeError, with the end of its stderr."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder, command = Path(name), _command(program, order)
        launched = time.time()
        _finish(command, folder, timeout_s)
        return read_trace(program, folder, order, launched)


def launch(program: str, order: Order, folder: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A program that runs in `folder` until the block is left."""
    return _launched(_command(program, order), folder)


def check_ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Raises: RuntimeError where a program that ended did not end well."""
    if process.returncode != 0:
        tail = (folder / "stderr").read_text(errors="replace")[-4000:]
        assert isinstance(process.args, list)
        command = " ".join(map(str, process.args[:4]))
        raise RuntimeError(f"{command} ... ended with {process.returncode}:\n{tail}")


def read_trace(program: str, folder: Path, order: Order, launched: float) -> Trace:
    """What a program left in its folder. Raises: RuntimeError where it did not do what it was asked for."""
    trace = (_read_trace if program in PEERS else _read_events)(folder, launched)
    if len(trace.ends) != order.steps:
        raise RuntimeError(f"{program} was asked for {order.steps} steps and did {len(trace.ends)}")
    return trace


def wait_until_alone(timeout_s: float = 20.0) -> None:
    """Raises: RuntimeError while a process of ours or of Ray is alive: a first step must not find a warm server."""
    deadline = time.monotonic() + timeout_s
    while found := [process.info["pid"] for process in psutil.process_iter(["pid", "cmdline"]) if _is_ours(process)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes that would warm the start are alive: {found}")
        time.sleep(0.1)


def _is_ours(process: psutil.Process) -> bool:
    words = process.info["cmdline"] or []
    launched = [Path(word).name for word in words[:3]]
    module = words[1:3] == ["-m", "konvoi"]
    return module or any(name in ("konvoi", "raylet", "gcs_server") or name.startswith("konvoi:") for name in launched)


def _command(program: str, order: Order) -> list[str]:
    python, scripts = sys.executable, Path(sys.executable).parent
    torchrun = [str(scripts / "torchrun"), "--standalone", "--nproc-per-node", str(order.workers)]
    match program:
        case "konvoi":
            return [python, str(HERE / "ours" / "train.py"), *order.arguments()]
        case "konvoi_command":
            recipe = str(HERE / "ours" / f"{order.work}.py")
            installed = scripts / "konvoi"
            command = [str(installed)] if installed.exists() else [python, "-m", "konvoi"]
            return [*command, "train", recipe, f"steps={order.steps}", "--workers", str(order.workers)]
        case "ddp" | "hf_trainer":
            return [*torchrun, str(HERE / "peers" / f"{program}.py"), *order.arguments()]
        case "ray_train" | "plain_loop":
            return [python, str(HERE / "peers" / f"{program}.py"), *order.arguments()]
        case _:
            raise ValueError(f"no program called {program}")


def _environment() -> dict[str, str]:
    path = [str(HERE.parent / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def _finish(command: Sequence[str], folder: Path, timeout_s: float) -> None:
    with _launched(command, folder) as process:
        process.wait(timeout_s)
    check_ended(process, folder)


@contextlib.contextmanager
def _launched(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Whatever happens in the block, the process and all that it started are gone afterwards."""
    with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Launchers give their workers sessions of their own, so that a signal to the group would not reach them.
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = psutil.Process(process.pid)
            for member in [tree, *tree.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
        process.wait()


def _read_trace(folder: Path, launched: float) -> Trace:
    fields = json.loads((folder / _work.TRACE).read_text())
    blocked = tuple((int(step), float(seconds)) for step, seconds in fields["blocked"])
    return Trace(launched, tuple(fields["ends"]), tuple(fields["losses"]), blocked, fields["num_parameters"])


def _read_events(folder: Path, launched: float) -> Trace:
    """Konvoi's own record of the run."""
    (path,) = folder.glob("runs/*/events.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "StepDone"]
    return Trace(
        launched,
        ends=tuple(event["time"] for event in steps),
        losses=tuple(float(event["loss"]) for event in steps),
        blocked=tuple((e["step"], e["blocked_s"]) for e in events if e["event"] == "CheckpointSaved"),
        num_parameters=next(event["num_parameters"] for event in events if event["event"] == "Ready"),
    )

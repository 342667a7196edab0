"""What islands of `wan.py --part speed` do: train in a lab, and when each took its steps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import konvoi as kv
from _harness import say
from konvoi.lab import Fault, Lab, Link
from konvoi.observe.events import from_json
from konvoi.plan.convoy import Convoy

ISLANDS, CORES = 4, 0.4
SEQ_LEN, SAMPLES = 128, 4  # of an island's step
PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Shape:
    depth: int = 6
    width: int = 384

    def recipe(self) -> Any:
        return kv.models.gpt(depth=self.depth, width=self.width)


QUICK = Shape(depth=2, width=64)


def job(shape: Shape, steps: int, **other: Any) -> kv.Job:
    """With the optimizer of `_learning.py`."""
    rest = kv.optimizers.adamw(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    fields: dict[str, Any] = {
        "model": shape.recipe(),
        "data": kv.data.text("stdlib", seq_len=SEQ_LEN),
        "objective": kv.objectives.next_token(),
        "optimizer": kv.optimizers.muon(lr=0.01, weight_decay=0.0, adamw=rest),
        "schedule": kv.schedules.constant(),
        "global_batch": SAMPLES * ISLANDS,
        "steps": steps,
        "validate_every": 0,
    }
    return kv.Job(**fields | other)


@dataclass
class Trace:
    """By island: when each step ended, in seconds of one clock."""

    ends: dict[str, list[float]] = field(default_factory=dict)
    events: dict[str, list[Any]] = field(default_factory=dict)  # by island, in order
    sent: list[int] = field(default_factory=list)  # bytes of each host
    dropped: list[int] = field(default_factory=list)

    def step_s(self, first: int, last: int) -> float:
        """Mean over the islands, from the end of one step to that of another (1 is the first)."""
        return statistics.mean((ends[last - 1] - ends[first - 1]) / (last - first) for ends in self.ends.values())


def train(
    plan: Convoy,
    link: Link,
    work: kv.Job,
    on_step: Callable[[Lab, str, int], None] | None = None,
    *,
    faults: Sequence[Fault] = (),
) -> Trace:
    """Every island to its end. `on_step(lab, island, step)` is called in between."""
    trace = Trace()
    with Lab(ISLANDS, link, cpu=CORES, faults=faults, say=say) as lab, tempfile.TemporaryDirectory() as folder:

        def seen(name: str, step: int) -> None:
            trace.ends.setdefault(name, []).append(time.monotonic())
            if on_step is not None:
                on_step(lab, name, step)

        fleet = lab.fleet(seen)
        run = kv.train(work, kv.Island() | plan, fleet, folder=folder, checkpoint_every=0, sinks=())
        for name in trace.ends:
            where = run.folder if name == "island-0" else run.folder / "islands" / name
            trace.events[name] = [from_json(line) for line in (where / "events.jsonl").read_text().splitlines()]
    trace.sent, trace.dropped = lab.traffic["sent"], lab.traffic["dropped"]
    return trace


@contextlib.contextmanager
def stopped(hosts: Sequence[Any]) -> Iterator[None]:
    """All processes of these hosts, which go on afterwards."""
    processes = [process for host in hosts for process in host.processes()]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def data_parallel(link: Link, shape: Shape, steps: int, *, exchange: bool) -> float:
    """Seconds of a step of torch DDP, a process on each host; without `exchange` each is alone."""
    told = peers("far_ddp.py", link, shape, {"steps": steps, "exchange": exchange})
    return statistics.mean((ends[-1] - ends[0]) / (len(ends) - 1) for ends in told)


def torchft(link: Link, shape: Shape, every: int, rounds: int) -> float:
    """Seconds of a step of torchft's DiLoCo, over whole rounds after the first."""
    steps = every * (rounds + 1)
    told = peers("far_torchft.py", link, shape, {"steps": steps, "every": every})
    if any(one["committed"] < rounds for one in told):
        raise RuntimeError(f"torchft agreed {[one['committed'] for one in told]} times, of {rounds + 1}")
    return statistics.mean((one["ends"][-1] - one["ends"][every - 1]) / (steps - every) for one in told)


def peers(program: str, link: Link, shape: Shape, order: dict[str, Any]) -> list[Any]:
    """A program on each host of a lab; the JSON in the last line of each."""
    with Lab(ISLANDS, link, cpu=CORES) as lab, tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank, host in enumerate(lab.hosts):
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(ISLANDS),
                "MASTER_ADDR": lab.hosts[0].address,
                "MASTER_PORT": "29500",
                "HERE": host.address,
                "GLOO_SOCKET_IFNAME": host.device,
                "OMP_NUM_THREADS": "1",
                "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
            }
            text = json.dumps({"depth": shape.depth, "width": shape.width, **order})
            command = [*host.site.prefix, sys.executable, str(PEERS / program), text]
            out = (Path(folder) / str(rank)).open("w+")
            processes.append((subprocess.Popen(command, env=environment, stdout=out), out))
        try:
            for process, _ in processes:
                if process.wait(1800):
                    raise RuntimeError(f"{program} ended with status {process.returncode}")
        finally:
            for process, _ in processes:
                process.kill()
        for _, out in processes:
            out.seek(0)
        return [json.loads(out.read().splitlines()[-1]) for _, out in processes]

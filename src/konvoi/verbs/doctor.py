"""doctor: what this machine has, what would make it better, and whether every way of splitting computes the same."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import konvoi
from konvoi.errors import KonvoiError, WorkerError
from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.local import local

EXTRAS = {  # each with a module that only it needs
    "text": "tokenizers",
    "hub": "datasets",
    "hf": "transformers",
    "lora": "peft",
    "images": "PIL",
    "tensorboard": "tensorboard",
}
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
BUDGET_S = 110.0  # of a self-test: it ends within two minutes, and names what it left out
FREE_BYTES = 2_000_000_000  # room for a few checkpoints of a small model
CPU_WORKERS = 4  # they share the cores: this is for the sums, not for speed


def doctor() -> dict[str, Any]:
    """The versions, devices, memory, disk and extras that are here; `warnings` say what to mend.

    >>> doctor()["num_cores"] >= 1
    True
    """
    with AgentHandle() as agent:
        hello = agent.hello()
        machine, can_fork = dict(hello["machine"]), bool(hello["can_fork"])
        loopback = _try_loopback(agent)
    found = {
        "konvoi": konvoi.__version__,
        "python": machine.pop("python"),
        "torch": machine.pop("torch"),
        **machine,
        "memory_bytes": _memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "extras": {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "congestion_control": _congestion_control(),
        "can_fork": can_fork,
        "loopback": loopback,
    }
    return found | {"warnings": list(_warnings(found))}


def meet(place: Any, payload: None) -> float:
    """Two workers add up their numbers, as an island's do: 1.0."""
    import torch

    from konvoi.island import enter
    from konvoi.plan.island import Island

    with enter(place, Island(dp=place.num_workers)):
        number = torch.tensor([float(place.worker)])
        torch.distributed.all_reduce(number)
        return number.item()


def _try_loopback(agent: AgentHandle) -> str:
    """ "ok", or why two workers on this computer cannot reach each other."""
    from konvoi.fleet.pool import Pool

    with Pool(agent, 2) as pool:
        try:
            return "ok" if pool.run("konvoi.verbs.doctor:meet", None, 2, timeout_s=30.0) == [1.0, 1.0] else "wrong sum"
        except WorkerError as error:
            return error.message


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _congestion_control() -> str | None:
    try:
        return CONGESTION.read_text().strip()
    except OSError:  # a system that does not say
        return None


def _warnings(found: Mapping[str, Any]) -> Iterator[str]:
    """What a person may want to mend, each with how."""
    if not found["can_fork"]:
        yield "forking is not safe here: workers are spawned, which takes seconds longer at each start"
    if found["loopback"] != "ok":
        yield (
            f"two workers of this computer cannot reach each other ({found['loopback']}): "
            "look at the firewall's rules for the loopback interface, or train with one worker"
        )
    if found["congestion_control"] and not found["congestion_control"].startswith("bbr"):
        yield (
            f"TCP's congestion control is {found['congestion_control']}, to which every lost packet is a full link: "
            "where islands are far apart, `sysctl net.ipv4.tcp_congestion_control=bbr` carries many times more"
        )
    if found["disk_free_bytes"] < FREE_BYTES:
        free = found["disk_free_bytes"] / 1e9
        yield f"only {free:.1f} GB are free in this folder: checkpoints may not fit; run where there is more room"
    if found["device_kind"] == "cpu":
        yield "torch finds no accelerator: training uses the CPU (if there is one, install torch's build for it)"
    if missing := [name for name, is_here in found["extras"].items() if not is_here]:
        yield f"not installed: {', '.join(missing)}; pip install 'konvoi[{','.join(missing)}]' adds them"


def self_test(say: Callable[[str], None], *, budget_s: float = BUDGET_S) -> bool:
    """Run the equivalence table on this machine's own devices, a line a row; whether every row holds.

    On the CPU in float64 to 1e-9; on an accelerator losses in fp32 to 1e-4, as not each has float64, and some add up
    in an order that changes from run to run.
    """
    from konvoi.fleet.pool import Pool
    from konvoi.proof import PRELOAD, Table, rows

    with AgentHandle(PRELOAD) as agent:
        machine = agent.hello()["machine"]
        device = local().device_kind(machine)
        num_workers = CPU_WORKERS if device == "cpu" else machine["num_devices"]
        with Pool(agent, num_workers, device=device) as pool:
            table = rows(num_workers, compiled=False, adapters=importlib.util.find_spec("peft") is not None)
            if device != "cpu":
                table = list(dict.fromkeys(row.on_accelerator() for row in table))
            usual = "float64 to 1e-9" if device == "cpu" else "fp32, losses to 1e-4"
            say(f"{len(table)} rows on {num_workers} x {machine['device']} ({device}), {usual} unless a row says more")
            return _prove(Table(pool), table, say, budget_s)


def _prove(proof: Any, table: list[Any], say: Callable[[str], None], budget_s: float) -> bool:
    begin, num_held, num_tried = time.monotonic(), 0, 0
    for row in table:
        started = time.monotonic()
        if started - begin > budget_s:
            say(f"out of time: {len(table) - num_tried} rows were not tried")
            break
        try:
            wrong = proof.differences(row, timeout_s=30.0)
        except KonvoiError as error:
            wrong = [str(error)]
        num_tried, num_held = num_tried + 1, num_held + (not wrong)
        seconds = time.monotonic() - started
        say(
            f"{'FAILED' if wrong else 'ok    '} {seconds:5.1f} s  {row.name}" + "".join(f"\n    {w}" for w in wrong[:3])
        )
    say(f"{num_held} of {num_tried} rows hold")
    return num_held == num_tried

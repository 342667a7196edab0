"""Rounds of simulated clients against Flower, pfl-research and a plain loop, on equal cores.

    python benchmarks/federated.py --json        about 25 minutes on 2 cores

*small*: 100 clients, 4 steps of 8, the LeNet of Flower's own quickstart. *real*: 24 unlike clients (Dirichlet 0.3), an
epoch in batches of 32, five on average, McMahan's CNN of 1.7 million parameters. Images are chest X-rays. All programs
begin with the same weights and read the same samples in the same batches, and what they have learnt in the end must be
the same, or nothing is reported.

A figure is the median of rounds 3 to 10; start-up stands apart (`..._setup_s`). Data are preloaded and evaluation is
off. All have the same two cores. Flower gets the best of three sizes of its actors, the loop the faster of one process
with two threads and two with one, and pfl the same. `ratio_vs_X` is X's time over konvoi's: above 1, konvoi is faster.
What konvoi found faster here, clients together or one by one, stands as `konvoi_way`. `..._10000_clients`: 10,000
clients with four steps of 4; memory is the most that any one process had. Flower and pfl have an environment of their
own, which `make bench-setup` makes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import _harness
from _harness import Figure, Options, Result, absent, say, spread

KEYS = (
    "ratio_vs_flower",
    "ratio_vs_pfl",
    "ratio_vs_loop",
    "ratio_vs_flower_real",
    "ratio_vs_loop_real",
    "setup_s_10000_clients",
    "memory_mib_10000_clients",
)
HERE = Path(__file__).parent
PEERS_PYTHON = Path(sys.prefix) / "peers" / "bin" / "python"  # Flower wants other versions of what others want, too
DATA = HERE.parent / "recipes" / "data" / "pneumoniamnist.npz"
CORES = 2  # by which the sizes below are chosen
ROUNDS, STEADY = 10, slice(2, 10)
SAME = 2e-3  # of the largest weight: what sums in another order come to in ten rounds


@dataclass(frozen=True)
class Program:
    command: tuple[str, ...]
    settings: tuple[str, ...] = ("small", "real")
    is_variant: bool = False  # one more size of a peer, which a quick run leaves out


PROGRAMS: Mapping[str, Program] = {
    "konvoi": Program((sys.executable, "ours/clients.py")),
    "loop_1x2": Program((sys.executable, "peers/clients_loop.py", "1", "2"), is_variant=True),
    "loop_2x1": Program((sys.executable, "peers/clients_loop.py", "2", "1")),
    "flower_1": Program((str(PEERS_PYTHON), "peers/clients_flower.py", "2"), is_variant=True),
    "flower_2": Program((str(PEERS_PYTHON), "peers/clients_flower.py", "1")),
    "flower_4": Program((str(PEERS_PYTHON), "peers/clients_flower.py", "0.5"), is_variant=True),
    "pfl_1x2": Program((str(PEERS_PYTHON), "peers/clients_pfl.py", "1", "2"), ("small",), is_variant=True),
    "pfl_2x1": Program((str(PEERS_PYTHON), "peers/clients_pfl.py", "2", "1"), ("small",)),
}


@dataclass(frozen=True)
class Told:
    seconds: tuple[float, ...]  # of each round
    setup_s: float
    peak_mib: float  # of its largest process
    way: str = ""  # konvoi's word on how it trains clients

    @property
    def steady_s(self) -> float:
        return statistics.median(self.seconds[STEADY] or self.seconds)


Run = Callable[[str, str, int], Told]


def measure(options: Options, run: Run | None = None) -> Result:
    runner = run or run_program
    rounds, repeats = (3, 1) if options.quick else (ROUNDS, options.rounds or 3)
    have_peers = run is not None or PEERS_PYTHON.exists()
    if not have_peers:
        say(f"Flower and pfl are not installed: no {PEERS_PYTHON} (make bench-setup); their figures are null")
    figures: dict[str, Figure] = {}
    seconds: dict[str, list[float]] = {}
    for setting in ("small", "real"):
        names = [
            name
            for name, program in PROGRAMS.items()
            if setting in program.settings
            and (have_peers or name.startswith(("konvoi", "loop")))
            and not (options.quick and program.is_variant)
        ]
        told = _harness.alternate({n: lambda n=n, s=setting: runner(n, s, rounds) for n in names}, repeats)  # type: ignore[misc]
        steady = {name: [one.steady_s for one in of] for name, of in told.items()}
        best = {
            "konvoi": steady["konvoi"],
            "loop": _best(steady, "loop"),
            "flower": _best(steady, "flower"),
            "pfl": _best(steady, "pfl"),
        }
        ending = "_real" if setting == "real" else ""
        for name, of in best.items():
            if name != "konvoi" and (setting == "small" or name != "pfl"):
                key = f"ratio_vs_{name}{ending}"
                ratios = [theirs / mine for theirs, mine in zip(of, best["konvoi"], strict=False)]
                figures |= spread(key, ratios) if ratios else absent(key)
        for name, of in steady.items():
            figures |= spread(f"{name}_round_ms{ending}", [1e3 * value for value in of])
            figures |= spread(f"{name}_setup_s{ending}", [one.setup_s for one in told[name]])
            figures[f"{name}_memory_mib{ending}"] = max(one.peak_mib for one in told[name])
            seconds[f"{name}_round_s{ending}"] = of
        figures[f"konvoi_way{ending}"] = told["konvoi"][0].way
    many = runner("konvoi", "many", 1 if options.quick else 2)
    figures |= {"setup_s_10000_clients": many.setup_s, "memory_mib_10000_clients": many.peak_mib}
    return Result(figures, seconds)


def _best(steady: Mapping[str, Sequence[float]], prefix: str) -> list[float]:
    """Of the sizes that a peer was run with, the one that is best in the median."""
    sizes = [of for name, of in steady.items() if name.startswith(prefix)]
    return [*min(sizes, key=statistics.median)] if sizes else []


# -- the work ----------------------------------------------------------------------------------------------------------


def prepare(folder: Path, setting: str, rounds: int) -> None:
    """Write what every program reads."""
    import _clients
    from konvoi.job.data import dirichlet, iid
    from konvoi.job.data.tensors import Arrays
    from konvoi.plan.local import Local
    from konvoi.population.cohorts import order

    archive = np.load(DATA)
    images = archive["train_images"][:, None].astype(np.float32) / 255
    labels = archive["train_labels"].reshape(-1).astype(np.int64)
    if setting == "many":
        images, labels = (np.concatenate([of] * 11) for of in (images, labels))
    source = Arrays({"inputs": images, "labels": labels})
    if setting == "real":
        parts, local, batch = dirichlet(clients=24, alpha=0.3).of(source), {"epochs": 1}, 32
    else:
        number = 100 if setting == "small" else 10_000
        parts, local, batch = iid(clients=number).of(source), {"steps": 4}, 8 if setting == "small" else 4
    sizes = [Local(**local).sizes(len(one), batch) for one in parts]
    # As konvoi draws them, so that all read the same.
    batches = [
        [order(0, client, number + 1, parts[client], sizes[client]) for client in range(len(parts))]
        for number in range(rounds)
    ]
    _clients.write(folder, "small" if setting == "many" else setting, images, labels, batches)
    told = {"samples": [one.tolist() for one in parts], "local": {**local, "batch": batch}}
    (folder / "clients.json").write_text(json.dumps(told))


def run_program(name: str, setting: str, rounds: int) -> Told:
    """Raises: RuntimeError where it fails, or has learnt something else than konvoi."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as made:
        folder = Path(made)
        prepare(folder, setting, rounds)
        python, program, *rest = PROGRAMS[name].command
        if sys.platform == "linux":
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # and of what is started from here
        with open(folder / "stderr.txt", "wb") as stderr:
            process = subprocess.Popen(
                [python, str(HERE / program), str(folder), *rest], stdout=subprocess.DEVNULL, stderr=stderr
            )
            _, status, used = os.wait4(process.pid, 0)  # with what its own processes used
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not (folder / "told.json").exists():
            text = (folder / "stderr.txt").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} failed ({process.returncode}): {text}")
        told = json.loads((folder / "told.json").read_text())
        check_same(name, setting, rounds, folder)
        way = (folder / "note.txt").read_text() if (folder / "note.txt").exists() else ""
        return Told(tuple(told["seconds"]), told["setup_s"], used.ru_maxrss / 1024, way)


LEARNT: dict[tuple[str, int], dict[str, np.ndarray]] = {}


def check_same(name: str, setting: str, rounds: int, folder: Path) -> None:
    import torch

    found = {key: value.numpy() for key, value in torch.load(folder / "learnt.pt").items()}
    known = LEARNT.setdefault((setting, rounds), found)
    for key, value in known.items():
        apart = abs(value - found[key]).max() / max(abs(value).max(), 1e-6)
        if apart > SAME:
            raise RuntimeError(f"{name} has learnt something else: {key} differs by {apart:.1e}")


if __name__ == "__main__":
    _harness.main("federated", KEYS, measure)

"""What every benchmark shares: its command line, alternating runs, statistics, the JSON line and the result file.

A benchmark is `NAME.py` with the names of its required keys and a function that measures. Progress goes to stderr; with
`--json` the last line of stdout is one flat JSON object. Every repeated figure is its median, with `_min` and `_max`
beside it. A full run (not `--quick`) also leaves `results/NAME.json` with commit, date, machine and every repeat.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Figure = float | int | str | bool | None
T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    quick: bool = False
    rounds: int | None = None  # None: the benchmark's own number


@dataclass(frozen=True)
class Result:
    """`figures` is the flat object that is printed; `repeats` holds every single run, for the result file only."""

    figures: Mapping[str, Figure]
    repeats: Mapping[str, Sequence[float]] = field(default_factory=dict)


def main(
    name: str,
    keys: Sequence[str],
    measure: Callable[[Options], Result],
    *,
    argv: Sequence[str] | None = None,
    results: Path = RESULTS,
) -> None:
    """Run one benchmark as a command. Raises: KeyError where a required key is missing from what was measured."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", description=f"required keys: {', '.join(keys)}")
    parser.add_argument("--json", action="store_true", help="one flat JSON object as the last line of stdout")
    parser.add_argument("--quick", action="store_true", help="under a minute: shows that it runs, not what is true")
    parser.add_argument("--rounds", type=int, default=None, help="alternating repeats")
    args = parser.parse_args(argv)
    result = measure(Options(args.quick, args.rounds))
    if missing := [key for key in keys if key not in result.figures]:
        raise KeyError(f"{name} measured no {', '.join(missing)}")
    figures = {key: _rounded(value) for key, value in result.figures.items()} | {"quick": args.quick}
    if not args.quick:
        _write_result(name, figures, result.repeats, results)
    if not args.json:
        print("\n".join(f"{key:<32} {value}" for key, value in figures.items()))
    else:
        print(json.dumps(figures, allow_nan=False), flush=True)


def say(message: str) -> None:
    """Progress, and everything else that is no figure."""
    print(message, file=sys.stderr, flush=True)


def alternate(programs: Mapping[str, Callable[[], T]], rounds: int | Mapping[str, int]) -> dict[str, list[T]]:
    """Run every program once a round, and give each one's outcomes in the order of rounds.

    The order rotates, so that drift of the machine favours nobody. A program with fewer rounds takes part in the first
    ones only: the k-th outcomes of two programs always come from the same round.
    """
    wanted = {name: rounds if isinstance(rounds, int) else rounds[name] for name in programs}
    outcomes: dict[str, list[T]] = {name: [] for name in programs}
    names = list(programs)
    for number in range(max(wanted.values(), default=0)):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if number < wanted[name]:
                say(f"round {number + 1}/{wanted[name]}: {name}")
                outcomes[name].append(programs[name]())
    return outcomes


def spread(name: str, values: Sequence[float]) -> dict[str, Figure]:
    """
    >>> spread("step_ms", [3.0, 1.0, 2.0])
    {'step_ms': 2.0, 'step_ms_min': 1.0, 'step_ms_max': 3.0}
    """
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round; the rounds that both took part in.

    >>> paired_ratios([2.0, 3.0, 9.0], [4.0, 3.0])
    [0.5, 1.0]
    """
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def absent(*names: str) -> dict[str, Figure]:
    """The fields of `spread` for figures that could not be measured: null, never left out."""
    return {f"{name}{suffix}": None for name in names for suffix in ("", "_min", "_max")}


def version(package: str, *, why: str) -> str | None:
    """An installed peer's version; None, and why that matters on stderr, where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        say(f"{why}: the package '{package}' is not installed (make bench-setup); its figures are null")
        return None


def machine() -> dict[str, Figure]:
    """The machine, without importing torch."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def _write_result(name: str, figures: Mapping[str, Figure], repeats: Mapping[str, Sequence[float]], to: Path) -> None:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rounded = {key: [_rounded(value) for value in values] for key, values in repeats.items()}
    record = {"benchmark": name, "commit": _commit(), "date": date, "machine": machine(), **figures, "repeats": rounded}
    to.mkdir(parents=True, exist_ok=True)
    path = to / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    say(f"written: {path.name}")


def _rounded(value: Figure) -> Figure:
    """Five significant digits; what is not finite has no place in a result."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ValueError(f"a figure that is not finite: {value}")
    return float(f"{value:.5g}")


def _commit() -> str | None:
    """The commit, with "+" where the working tree differs from it; None outside a repository."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None

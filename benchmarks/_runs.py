"""Runs that take hours together: what has been run already, and what is missing, a few processes at a time."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from _harness import say


class Runnable(Protocol):
    """A frozen dataclass of plain values, which is a run's whole recipe."""

    @property
    def id(self) -> str: ...

    def run(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Runnable)


class Runs:
    """Finished runs by trial, a line each; a file that several processes add to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Mapping[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {run["id"]: run for run in map(json.loads, lines)}

    def missing(self, trials: Iterable[T]) -> list[T]:
        done = self.read()
        return [trial for trial in dict.fromkeys(trials) if trial.id not in done]

    def add(self, run: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")


def in_processes(program: str, trials: Sequence[Runnable], runs: Runs, num_processes: int) -> None:
    """Those that are missing, each in a process of its own on one core: `program --trial TRIAL --runs PATH`."""
    missing = runs.missing(trials)

    def run(number: int) -> None:
        say(f"run {number + 1}/{len(missing)}: {missing[number]}")
        command = [sys.executable, program, "--trial", repr(missing[number]), "--runs", str(runs.path)]
        if status := subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode:
            raise RuntimeError(f"{missing[number]} ended with status {status}")

    with ThreadPoolExecutor(num_processes, initializer=_take_a_core, initargs=(itertools.count(),)) as pool:
        list(pool.map(run, range(len(missing))))


def _take_a_core(places: Iterator[int]) -> None:
    """Of this thread, and so of the processes that it starts."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(os.getpid()))
        os.sched_setaffinity(0, {cores[next(places) % len(cores)]})


def read_trial(text: str, kind: Callable[..., T]) -> T:
    """What `repr` has made of a trial."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    return kind(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})

"""The process that trains at a site, from the agent's side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from konvoi.sites.orders import Order, Result, Told
from konvoi.sites.protocol import KILLED, LIMITS

LOOK_S = 0.1
PROGRAMS = {"recipe": "konvoi.sites.trainer", "flower": "konvoi.compat.flower.deployed"}  # that answer orders
NOT_FOR_RECIPES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class Process:
    """Started for the first order, and again where it has ended. `folder`: where it works, and its log is. `end` may
    come from another thread than `train`."""

    def __init__(self, told: Told, folder: Path) -> None:
        self.told, self.folder = told, folder
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def train(self, order: Order, *, most_s: float, is_over: Callable[[], bool]) -> Result | None:
        """None where it was ended before it had done. What fails is a code."""
        result = None
        try:
            result = self._answer(order, most_s, is_over)
        finally:
            if result is None or result.code in (KILLED, LIMITS):
                self.end()  # else the next order would get this one's answer
        return result

    def _answer(self, order: Order, most_s: float, is_over: Callable[[], bool]) -> Result | None:
        answer: list[str] = []
        try:
            process = self._running()
            _write(process, asdict(order))
        except (OSError, ValueError):  # it has ended, or its pipe was closed
            return None if is_over() else Result(KILLED)
        reader = threading.Thread(target=_read, args=(process, answer), daemon=True)
        reader.start()
        begin = time.monotonic()
        while reader.is_alive() and not is_over() and time.monotonic() - begin <= most_s:
            reader.join(LOOK_S)
        if is_over():
            return None
        if reader.is_alive():
            return Result(LIMITS)
        try:
            return Result(**json.loads(answer[0]))
        except (ValueError, TypeError, IndexError):
            return Result(KILLED)

    def _running(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
                with contextlib.suppress(OSError):
                    _write(self._process, asdict(self.told))
            return self._process

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_RECIPES}
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAMS.get(self.told.kind, PROGRAMS["recipe"])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=kept | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the agent, which ends it; and so it is ended with its children
            )

    def end(self) -> None:
        """At once."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _write(process: subprocess.Popen[str], told: dict[str, object]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(told) + "\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[str], answer: list[str]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):  # closed by whoever has ended it
        answer.append(process.stdout.readline())

"""The process that trains at a site, from the agent's side."""

from __future__ import annotations

import contextlib
import json
import os
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
    """Started for the first order, and again where it has ended. `folder`: where it works, and its log is."""

    def __init__(self, told: Told, folder: Path) -> None:
        self.told, self.folder = told, folder
        self._process: subprocess.Popen[str] | None = None

    def train(self, order: Order, *, most_s: float, is_over: Callable[[], bool]) -> Result | None:
        """None where it was ended before it had done. Raises nothing: what fails is a code."""
        process = self._running()
        answer: list[str] = []
        reader = threading.Thread(target=lambda: answer.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(order)) + "\n")
            process.stdin.flush()
        except OSError:
            self.end()
            return Result(KILLED)
        reader.start()
        begin = time.monotonic()
        while reader.is_alive():
            reader.join(LOOK_S)
            if is_over():
                self.end()
                return None
            if time.monotonic() - begin > most_s:
                self.end()
                return Result(LIMITS)
        try:
            return Result(**json.loads(answer[0]))
        except (ValueError, TypeError):
            self.end()
            return Result(KILLED)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_RECIPES}
            with (self.folder / "log.txt").open("a") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", PROGRAMS.get(self.told.kind, PROGRAMS["recipe"])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self.folder,
                    env=kept | {"PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C is for the agent, which ends it
                )
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(json.dumps(asdict(self.told)) + "\n")
                self._process.stdin.flush()
        return self._process

    def end(self) -> None:
        """At once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._process = None

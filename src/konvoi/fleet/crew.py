"""The parent's side of an agent and its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TextIO

from konvoi.errors import FleetError
from konvoi.fleet.channel import Channel, pair
from konvoi.fleet.worker import flush_output

REQUEST_BYTES = 64  # as in agent.py, which this file must not import: it would be loaded twice
LEAVE_S = 0.3  # for workers to leave by themselves before they are killed


# A step frees what the next one asks for again: memory that glibc keeps, in huge pages, saves hundreds of page faults a
# step, and 1.5 % of its time on CPU. Blocks from 32 MiB on still go back at once. Other C libraries ignore it.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_threshold": 32 << 20, "trim_threshold": 256 << 20}.items()
)


class AgentHandle:
    """Starts an agent at once and without waiting; the first request waits for it. Use with `with`."""

    def __init__(self, preload: Sequence[str] = (), prefix: Sequence[str] = ()) -> None:
        """`prefix`: what its command line begins with, for an agent that is to run elsewhere on this computer."""
        self.preload, self.prefix = tuple(preload), tuple(prefix)
        self._start()

    def _start(self) -> None:
        ours, theirs = pair()
        package_root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "OPENBLAS_NUM_THREADS": "1",  # numpy's pool of threads would not survive the fork
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counting devices must not initialise CUDA before the fork
            "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),  # the convoy itself says who is gone
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ALLOCATOR),
        }
        # -P: a file of the user's called random.py must not shadow the standard library's.
        module = [sys.executable, "-P", "-m", "konvoi.fleet.agent"]
        command = [*self.prefix, *module, str(theirs.fileno()), str(os.getpid()), *self.preload]
        # A session of its own: Ctrl-C reaches the parent alone, which then asks the workers to save.
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=_inherited(sys.__stdout__),
            stderr=_inherited(sys.__stderr__),
            start_new_session=True,
        )
        theirs.close()
        self.channel = Channel(ours)
        self._hello: Mapping[str, Any] | None = None

    def hello(self) -> Mapping[str, Any]:
        """What the agent found: pid, num_threads, can_fork, machine. Waits until it is ready."""
        if self._hello is None:
            try:
                kind, body = self.channel.receive()
            except EOFError:
                raise FleetError(
                    "the agent that starts the workers ended before it was ready", hint="its own error stands above"
                ) from None
            assert kind == "hello"
            self._hello = body
        return self._hello

    def request(self, line: str, fds: Sequence[int] = ()) -> None:
        self.hello()
        with contextlib.suppress(BrokenPipeError):  # its end is seen where its channel is read
            socket.send_fds(self.channel.sock, [line.encode().ljust(REQUEST_BYTES)], list(fds))

    def load(self, module: str) -> None:
        """Import a module in the agent, once, before the workers are forked."""
        self.preload += (module,)  # for another agent in this one's place
        self.request(f"load {module}")

    def receive(self) -> tuple[str, Any]:
        """What the agent reports. Raises: FleetError where it is gone, and its workers with it."""
        try:
            return self.channel.receive()
        except EOFError:
            self.process.wait()
            raise FleetError("the agent that owns the workers was killed") from None

    def close(self) -> None:
        """Ends the agent and with it every worker. Returns when they are gone."""
        self.channel.close()
        if self._hello is None:  # it may still be loading torch, and has no worker
            self.process.kill()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def replace_if_gone(self) -> None:
        """Start another agent where this one was killed."""
        if self.process.poll() is not None:
            self.close()
            self._start()

    def __enter__(self) -> AgentHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _inherited(stream: TextIO | None) -> int | None:
    """For Popen: nothing where this program runs with the stream closed, as its number may be another file's now."""
    try:
        assert stream is not None
        os.fstat(stream.fileno())
    except (AssertionError, ValueError, OSError):
        return subprocess.DEVNULL
    return None


@dataclass(frozen=True)
class Message:
    """`kind` is "event", "result" or "failure" from a worker, or "exited" (body: exit code) from the agent."""

    worker: int
    kind: str
    body: Any


class Crew:
    """`num_workers` workers under one agent. Use with `with`; leaving it kills what still runs."""

    def __init__(self, agent: AgentHandle, num_workers: int, *, spawn: bool = False) -> None:
        self.agent, self.num_workers, self.spawn = agent, num_workers, spawn
        self.channels: dict[int, Channel] = {}
        self.pids: dict[int, int] = {}
        self.starting: set[int] = set()  # asked for, and not yet reported

    def start(self, numbers: Sequence[int] | None = None) -> None:
        """Fork the workers (or those named, to replace them)."""
        flush_output()  # what this program has printed comes before what its workers print
        for number in range(self.num_workers) if numbers is None else numbers:
            ours, theirs = pair()
            self.starting.add(number)
            self.agent.request(f"{'spawn' if self.spawn else 'fork'} {number}", [theirs.fileno()])
            theirs.close()
            self.channels[number] = Channel(ours)

    def submit(self, body: bytes, fields: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> None:
        """Send the pickled `(entry, payload)` to the first `len(fields)` workers, each with its Place's fields."""
        cwd = os.getcwd()
        for number, place in enumerate(fields):
            with contextlib.suppress(BrokenPipeError, ConnectionError):  # dead already: its exit is reported
                self.channels[number].send("task", (sys.path, cwd, dict(environment), dict(place), body))

    def messages(self, timeout_s: float) -> list[Message]:
        """What has arrived, waiting for at most `timeout_s`. Raises: FleetError where the agent is gone."""
        sources = {channel.sock: number for number, channel in self.channels.items()}
        readable = wait([*sources, self.agent.channel.sock], timeout_s)
        found = []
        for sock, number in sources.items():
            if sock in readable:
                found += self._from_worker(number)
        if self.agent.channel.sock in readable:
            found += self._from_agent()
        return found

    def _from_worker(self, number: int) -> list[Message]:
        try:
            return [Message(number, *self.channels[number].receive())]
        except EOFError:
            self.channels.pop(number).close()  # the agent reports how it ended
            return []

    def _from_agent(self) -> list[Message]:
        kind, body = self.agent.receive()
        if kind == "started":
            self.pids[body[0]] = body[1]
            self.starting.discard(body[0])
            return []
        number, pid, code = body
        if self.pids.get(number) != pid:
            return []  # one of an earlier crew
        del self.pids[number]
        said = []  # its last words: they lie in the socket's buffer, and come before its exit
        while number in self.channels and wait([self.channels[number].sock], 0):
            said += self._from_worker(number)
        return [*said, Message(number, "exited", code)]

    def stop(self) -> None:
        """Ask every worker to save and stop after the present step."""
        for channel in self.channels.values():
            with contextlib.suppress(OSError):
                channel.send("stop")

    def end(self, numbers: Sequence[int] | None = None) -> None:
        """Let workers leave, then kill those that did not. Returns when all named are gone. Raises: FleetError."""
        while self.starting:
            self.messages(timeout_s=0.2)
        waiting = set(self.pids if numbers is None else numbers)
        for number in waiting & set(self.channels):
            with contextlib.suppress(OSError):
                self.channels[number].send("leave")
        deadline = time.monotonic() + LEAVE_S
        while waiting & set(self.pids):
            self.messages(timeout_s=0.02)
            if time.monotonic() > deadline:
                deadline = float("inf")
                for number in waiting & set(self.pids):
                    self.kill(number)
        for number in set(self.channels) - set(self.pids):
            self.channels.pop(number).close()

    def kill(self, number: int) -> None:
        self.agent.request(f"kill {self.pids[number]} {int(signal.SIGKILL)}")

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(FleetError):
            self.end()
        for channel in self.channels.values():
            channel.close()

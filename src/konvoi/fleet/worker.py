"""A worker, from its own side: it waits for tasks on its channel, runs them, and sends back events and results."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from konvoi.errors import KonvoiError
from konvoi.fleet.channel import Channel

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Place:
    """Where a worker stands: all that a task needs to know of the fleet."""

    worker: int  # the global rank
    num_workers: int
    local_worker: int = 0  # among the workers of this host
    device_kind: str = "cpu"
    num_threads: int = 0  # 0: leave torch's default
    store_file: str = ""  # where the workers of one host meet; "": by torchrun's environment
    attempt: int = 0  # how often the island was restarted
    send: Callable[[Any], None] = field(default=lambda event: None, compare=False)  # an event, to whoever records
    stop_requested: Callable[[], bool] = field(default=lambda: False, compare=False)
    reach_step: Callable[[int], None] = field(default=lambda step: None, compare=False)  # for messages about failures


@dataclass(frozen=True)
class Failure:
    """What a worker's exception was, in a form that always travels."""

    kind: str
    message: str
    traceback: str
    step: int | None
    error: KonvoiError | None  # one of our own arrives whole
    is_consequence: bool  # a broken connection: somebody else's failure is the cause


def main(number: int, fd: int, agent_pid: int) -> None:
    """Serve tasks until the other end of the socket `fd` closes."""
    channel, tasks, stop = _settle(fd, agent_pid)
    reached: list[int] = []
    while True:
        try:
            sys.path[:], environment, fields, body = tasks.get()
            reached.clear()
            os.environ.update(environment)
            entry, payload = pickle.loads(body)
            if isinstance(entry, str):
                module, _, name = entry.partition(":")
                entry = getattr(importlib.import_module(module), name)
            place = Place(
                **fields,
                send=lambda event: channel.send("event", event),
                stop_requested=stop.is_set,
                reach_step=lambda step: reached.__setitem__(slice(None), [step]),
            )
            result = entry(place, payload)  # here, not deeper: this frame is the first in a worker's stack
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            channel.send("result", result)
        except BaseException as error:
            with contextlib.suppress(OSError):
                channel.send("failure", describe_failure(error, reached[0] if reached else None))


def _settle(fd: int, agent_pid: int) -> tuple[Channel, queue.SimpleQueue[Any], threading.Event]:
    """Tie this process to the agent's life, take its own process group, and begin to listen."""
    if sys.platform == "linux":
        # Also when stopped or stuck in native code.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != agent_pid:
            os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)  # its loader processes can be killed with it
    channel = Channel(socket.socket(fileno=fd))
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(channel, tasks, stop), daemon=True, name="konvoi-listen").start()
    return channel, tasks, stop


def _listen(channel: Channel, tasks: queue.SimpleQueue[Any], stop: threading.Event) -> None:
    status = 1  # the other end is gone: so is the reason to be here
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, body = channel.receive()
            if kind == "stop":
                stop.set()
            elif kind == "task":
                stop.clear()
                tasks.put(body)
            elif kind == "leave":
                status = 0
                break
    os._exit(status)


def describe_failure(error: BaseException, step: int | None) -> Failure:
    text = "".join(traceback.format_exception(error))
    name = type(error).__name__
    lost = name in ("DistBackendError", "DistNetworkError", "DistStoreError") or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("Connection closed", "Connection reset", "gloo", "NCCL"))
    )
    own = error if isinstance(error, KonvoiError) else None
    return Failure(name, str(error), text, step, own, is_consequence=lost)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""A worker, from its own side: it waits for tasks on its channel, runs them, and sends back events and results."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from konvoi.errors import KonvoiError
from konvoi.fleet.channel import Channel

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # also when a service manager signals every process


@dataclass(frozen=True)
class Place:
    """Where a worker stands: all that a task needs to know of the fleet."""

    worker: int  # the global rank
    num_workers: int
    local_worker: int = 0  # among the workers of this host
    num_local_workers: int = 1
    device_kind: str = "cpu"
    num_threads: int = 0  # 0: leave torch's default
    store_file: str = ""  # where the workers of one host meet; "": by torchrun's environment
    attempt: int = 0  # how often the island was restarted
    store: Any = field(default=None, compare=False)  # where they meet, if a launcher's workers are several islands
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
            sys.path[:], cwd, environment, fields, body = tasks.get()
            reached.clear()
            _move_to(cwd, environment)
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
            flush_output()
            channel.send("result", result)
        except BaseException as error:
            flush_output()
            with contextlib.suppress(OSError):
                channel.send("failure", describe_failure(error, reached[0] if reached else None))


def _settle(fd: int, agent_pid: int) -> tuple[Channel, queue.SimpleQueue[Any], threading.Event]:
    """Tie this process to the agent's life, take its own process group, and begin to listen."""
    end_with_parent(agent_pid)
    _tie_children()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in LEFT_TO_PARENT:
        # A handler and not SIG_IGN, which programs that this worker starts would inherit.
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)
    os.setpgid(0, 0)  # its loader processes can be killed with it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # prints come in time and in order, and survive a kill
    channel = Channel(socket.socket(fileno=fd))
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(channel, tasks, stop), daemon=True, name="konvoi-listen").start()
    return channel, tasks, stop


def end_with_parent(parent_pid: int) -> None:
    """From here on the kernel kills this process when its parent ends; also when stopped or stuck in native code."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)


def _tie_children() -> None:
    """What this worker forks (loader processes) ends with it, however it ends."""
    forker: list[int] = []
    masks: list[set[signal.Signals]] = []

    def before() -> None:
        # A signal that comes before the child has its own handlers would be lost.
        masks.append({signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)})
        # The kernel means the thread that forked, so only the main one's end is the process's end.
        is_main = threading.current_thread() is threading.main_thread()
        forker[:] = [os.getpid()] if is_main else []

    def in_child() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # Process.terminate() ends it
        unblock()
        if forker:
            end_with_parent(forker[0])

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    os.register_at_fork(before=before, after_in_parent=unblock, after_in_child=in_child)


def _move_to(cwd: str, environment: Mapping[str, str]) -> None:
    """Stand where the program stands now: it may have moved since it started the agent."""
    with contextlib.suppress(OSError):  # the folder is gone, which the program itself may not have noticed
        os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)


def flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # none, closed, or nobody reads it
            stream.flush()


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
    message = "".join(traceback.format_exception_only(error)).strip().removeprefix(f"{name}: ")
    lost = name in ("DistBackendError", "DistNetworkError", "DistStoreError") or (
        isinstance(error, RuntimeError)
        and any(word in message for word in ("Connection closed", "Connection reset", "gloo", "NCCL"))
    )
    own = error if isinstance(error, KonvoiError) and _travels(error) else None
    return Failure(name, message, text, step, own, is_consequence=lost)


def _travels(error: KonvoiError) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of the user's own: whatever its fields raise, the traceback still arrives
        return False
    return True

"""The agent: a process that has imported torch, run no operator, and forks workers on request.

    python -m konvoi.fleet.agent FD PARENT_PID MODULE...

FD is a socket to the parent; the modules are imported once, here, so that a worker starts in milliseconds instead of
seconds. The agent decides nothing: it forks, kills and reports exits. When the parent is gone, however it went, the
agent kills every worker and leaves; when the agent is gone, the kernel kills the workers (worker.py).

It stays single-threaded: OpenMP and autograd threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import wait
from typing import Any

from konvoi.fleet import worker
from konvoi.fleet.channel import Channel


def main() -> Child | None:
    """Serve until the parent is gone. Returns in a forked worker, too: with what it is to become."""
    parent = Channel(socket.socket(fileno=int(sys.argv[1])))
    for module in sys.argv[3:]:
        importlib.import_module(module)
    return Agent(parent, int(sys.argv[2])).serve()


Child = tuple[int, int, int]  # worker number, its socket, the agent's pid
REQUEST_BYTES = 64  # every request is padded to this, as a stream socket keeps no boundaries
LOOK_S = 1.0  # between looks at whether the parent lives: a process that it forked may hold its end of the socket


class Agent:
    def __init__(self, parent: Channel, parent_pid: int) -> None:
        self.parent, self.parent_pid = parent, parent_pid
        self.workers: dict[int, int] = {}  # pid -> worker number
        self.spawned: dict[int, subprocess.Popen[bytes]] = {}  # kept so that their handles stay open
        self.wake, self._wake_end = os.pipe()
        for fd in (self.wake, self._wake_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent decides; its death is seen on the socket

    def serve(self) -> Child | None:
        self._tell("hello", self._describe())
        while os.getppid() == self.parent_pid:
            readable = wait([self.parent.sock, self.wake], LOOK_S)  # not select(): descriptors may lie above 1024
            if self.wake in readable:
                os.read(self.wake, 4096)
                self._reap()
            if self.parent.sock in readable:
                try:
                    child = self._obey()
                except EOFError:
                    break
                if child:
                    return child
        self._kill_all()
        return None

    def _describe(self) -> dict[str, Any]:
        from konvoi import devices

        device_kind = devices.kind()
        return {
            "pid": os.getpid(),
            "num_threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None,
            "can_fork": devices.forking_is_safe(),
            "machine": devices.describe(device_kind) | {"cpu": devices.name("cpu")},
        }

    def _obey(self) -> Child | None:
        """One request: a line `fork N`, `spawn N` (with the worker's socket attached) or `kill PID SIGNAL`,
        or `load MODULE` for what only some plans need.

        Returns a value in a forked child only. Raises: EOFError where the parent is gone.
        """
        try:
            line, fds, _, _ = socket.recv_fds(self.parent.sock, REQUEST_BYTES, 1)
        except ConnectionError:
            line, fds = b"", []
        if not line:
            raise EOFError
        verb, *numbers = line.decode().split()
        if verb == "load":
            importlib.import_module(numbers[0])
            return None
        if verb == "kill":
            self._kill(*map(int, numbers))
            return None
        agent_pid, number = os.getpid(), int(numbers[0])
        worker.flush_output()  # what waits in a buffer would be written by every child again
        pid = os.fork() if verb == "fork" else self._spawn(number, fds[0])
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.parent.close()
            os.close(self.wake)
            os.close(self._wake_end)
            return number, fds[0], agent_pid
        os.close(fds[0])
        self.workers[pid] = number
        self._tell("started", (number, pid))
        return None

    def _spawn(self, number: int, fd: int) -> int:
        # Not -m: the module would be loaded twice, and what it sends would be of the wrong one.
        program = f"from konvoi.fleet import worker; worker.main({number}, {fd}, {os.getpid()})"
        command = [sys.executable, "-P", "-c", program]
        process = subprocess.Popen(command, pass_fds=[fd])
        self.spawned[process.pid] = process
        return process.pid

    def _reap(self) -> None:
        while self.workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # its loader processes
            if (number := self.workers.pop(pid, None)) is not None:
                self._tell("exited", (number, pid, os.waitstatus_to_exitcode(status)))

    def _kill(self, pid: int, signal_number: int) -> None:
        if pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if signal_number == signal.SIGKILL else os.kill)(pid, signal_number)

    def _kill_all(self) -> None:
        for pid in list(self.workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _tell(self, kind: str, body: Any) -> None:
        with contextlib.suppress(OSError):
            self.parent.send(kind, body)


if __name__ == "__main__":
    # A forked worker comes back here, to the bottom of the stack: its tracebacks show the worker, not the agent.
    if (child := main()) is not None:
        worker.main(*child)

"""Messages between a run's own processes on one host: `(kind, body)` pairs over a local socket.

Both ends are processes that Konvoi started from the same program inside one trusted island, so bodies are pickled.
Nothing that comes from another island ever passes here.
"""

from __future__ import annotations

import fcntl
import pickle
import socket
import struct
import threading
from typing import Any

HEADER = struct.Struct("!Q")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    ours, theirs = socket.socketpair()
    return _above_standard(ours), _above_standard(theirs)


def _above_standard(end: socket.socket) -> socket.socket:
    """Where a program runs with its stdin, stdout or stderr closed, a new file takes that number: what somebody writes
    to standard error would land on the socket."""
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


class Channel:
    """One end of a socket. Sending is safe from several threads; receiving is for one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()

    def send(self, kind: str, body: Any = None) -> None:
        """Raises: OSError where the other end is gone."""
        frame = pickle.dumps((kind, body), protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self.sock.sendall(HEADER.pack(len(frame)) + frame)

    def receive(self) -> tuple[str, Any]:
        """Wait for a message. Raises: EOFError where the other end is gone."""
        (length,) = HEADER.unpack(self._read(HEADER.size))
        kind, body = pickle.loads(self._read(length))
        return kind, body

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            try:
                chunk = self.sock.recv(min(length - len(parts), 1 << 20))
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError("the other end is gone")
            parts += chunk
        return bytes(parts)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

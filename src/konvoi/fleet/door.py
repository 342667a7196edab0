"""The door of a desk: HTTPS by the standard library, a thread for each connection, and no more than so many of them."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from konvoi.errors import FleetError, KonvoiError
from konvoi.fleet.wire.dial import OK

LARGEST = 1 << 16  # bytes of a request, but for a frame
TIMEOUT_S = 10.0
MOST = 512  # connections at a time


class Desk(Protocol):
    """Who answers: `desk.Desk`."""

    def answer(self, path: str, body: Mapping[str, Any], certificate: bytes | None, host: str) -> dict[str, Any]:
        """Raises: KonvoiError, which is told."""

    def answer_frame(self, frame: Callable[[int], bytes], certificate: bytes | None) -> bytes:
        """Raises: KonvoiError, which is told."""


class Door(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], desk: Desk, context: ssl.SSLContext) -> None:
        self.desk, self.context = desk, context
        self.slots = threading.BoundedSemaphore(MOST)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise FleetError("the desk cannot listen", found=f"{address[0]}:{address[1]}: {error.strerror}") from None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a stranger who says nothing keeps nobody else waiting."""
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            request.settimeout(TIMEOUT_S)
            request.getpeername()  # else wrap_socket raises for whoever has hung up, and leaves its own socket open
            super().process_request_thread(self.context.wrap_socket(request, server_side=True), client_address)
        except (OSError, ssl.SSLError, ValueError):
            self.shutdown_request(request)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nothing to be told."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Door
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        shown = self.connection.getpeercert(binary_form=True)
        try:
            if self.path == "/frame":
                self._say(OK, self.server.desk.answer_frame(self._body, shown))
                return
            body = json.loads(self._body(LARGEST))
            if not isinstance(body, dict):
                raise FleetError("a request is an object")
            self._tell(OK, self.server.desk.answer(self.path, body, shown, self.client_address[0]))
        except KonvoiError as error:
            self._tell(403, {"message": error.message, "found": str(error.found or ""), "hint": error.hint or ""})
        except (ValueError, RecursionError):
            self._tell(400, {"message": "a request that makes no sense"})

    def _body(self, largest: int) -> bytes:
        size = int(self.headers.get("Content-Length", "-1"))
        if not 0 <= size <= largest:
            raise FleetError("a request has a length, and is not larger", expected=f"at most {largest} bytes")
        data = self.rfile.read(size)
        if len(data) < size:
            raise ValueError("a request that was cut off")
        return data

    def _tell(self, status: int, body: Mapping[str, Any]) -> None:
        self._say(status, json.dumps(body).encode(), "application/json")

    def _say(self, status: int, data: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """The desk says itself what a person should know."""

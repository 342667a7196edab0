"""In place of a desk or a proxy: it keeps what it is told, and says what the test gives it to say."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import ssl
import threading

from konvoi.security import identity
from konvoi.security.identity import Authority
from konvoi.security.roster import DESK


class Listener:
    """Use with `with`. `context`: of TLS, or plain without one. `told`: what came, a connection each; `shown`: the
    certificates of those who came."""

    def __init__(self, context: ssl.SSLContext | None = None, answer: bytes = b"") -> None:
        self.context, self.answer = context, answer
        self.told: list[bytes] = []
        self.shown: list[bytes | None] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def desk(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self._hear(self._listener.accept()[0])

    def _hear(self, client: socket.socket) -> None:
        client.settimeout(5)
        with contextlib.ExitStack() as stack:
            stack.callback(client.close)
            if self.context is not None:
                client = stack.enter_context(self.context.wrap_socket(client, server_side=True))
                self.shown.append(client.getpeercert(binary_form=True))
            self.told.append(b"")
            with contextlib.suppress(OSError):
                while not _is_whole(self.told[-1]) and (data := client.recv(65536)):
                    self.told[-1] += data
                if self.told[-1]:
                    client.sendall(self.answer)


def _is_whole(told: bytes) -> bool:
    head, end, body = told.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def desk(folder, *, begins: float = -1, ends: float = 30, of: Authority | None = None):
    """An authority, and how its desk, whose certificate is valid between these days from now, shows itself."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, identity, "CLOCK_SKEW", identity.CLOCK_SKEW)
        stack.callback(setattr, identity, "VALID_DAYS", identity.VALID_DAYS)
        authority = of or Authority.make("test")
        identity.CLOCK_SKEW, identity.VALID_DAYS = datetime.timedelta(days=-begins), ends
        authority.issue(DESK).save(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=authority.certificate.decode())
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return authority, context

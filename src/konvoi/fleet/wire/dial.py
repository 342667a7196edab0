"""Requests from a house that only lets requests out: HTTPS to one port, through the proxy that the environment names,
and where TLS is opened on the way, that is found out and said."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from konvoi.errors import FleetError
from konvoi.security.identity import issuer_of, name_of
from konvoi.security.roster import DESK
from konvoi.units import visible

TIMEOUT_S = 10.0
PATIENCE_S = 25.0  # with an answer: the desk may keep it until there is something to say
LARGEST = 1 << 26  # bytes of an answer
OK = 200
SILENT = "the federation's desk does not answer"
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python's ssl has no name for


class Unreached(FleetError):
    """Nobody answers just now."""


class Inspected(FleetError):
    """What answers is not the desk: somebody on the way opens the connection."""


class Said(FleetError):
    """What the desk has against it, in its own words."""


@dataclass(frozen=True)
class Proxy:
    host: str
    port: int
    authorization: str = field(default="", repr=False)  # of the header


def proxy_for(host: str) -> Proxy | None:
    """The HTTP proxy through which the environment (`https_proxy`, `no_proxy`) wants this host reached.

    Raises: FleetError for one that cannot be used.
    """
    told = urllib.request.getproxies().get("https") or urllib.request.getproxies().get("all")
    if not told or urllib.request.proxy_bypass(host):
        return None
    try:
        found = urllib.parse.urlsplit(told if "//" in told else f"//{told}")
        port = found.port or 8080
        if found.scheme not in ("", "http") or not found.hostname:
            raise ValueError
    except ValueError:
        shown = _without_password(told)
        raise FleetError("a proxy is reached by HTTP", found=shown, expected="https_proxy=http://HOST:PORT") from None
    authorization = ""
    if found.username is not None:
        user = f"{urllib.parse.unquote(found.username)}:{urllib.parse.unquote(found.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(found.hostname, port, authorization)


@dataclass(frozen=True)
class Dial:
    """Where a member asks. `desks`: host:port, tried in this order; `identity`: the folder with its certificate."""

    desks: tuple[str, ...]
    authority: str  # PEM, of who has signed the desk's certificate
    identity: Path | None = None

    def post(self, path: str, body: bytes, kind: str = "application/octet-stream") -> tuple[int, bytes]:
        """Status and body of the first desk that is reached; no other is given the request, as what has left once may
        not leave unseen again. Raises: Unreached, Inspected."""
        with self._first() as (desk, connection):
            try:
                connection.sock.settimeout(PATIENCE_S)
                connection.request("POST", path, body, {"Content-Type": kind})
                with contextlib.closing(connection.getresponse()) as answer:
                    told = answer.read(LARGEST + 1)
                    if len(told) > LARGEST or answer.length:
                        raise ValueError("an answer that is too large, or was cut off")
                    return answer.status, told
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Unreached(SILENT, found=f"{desk}: {error}") from None

    def look(self) -> bytes:
        """The desk's certificate, PEM, be it valid now or not; nothing is asked. Raises: Unreached, Inspected."""
        with self._first(NO_CHECK_TIME) as (_, connection):
            return _shown(connection)

    @contextlib.contextmanager
    def _first(self, flags: int = 0) -> Iterator[tuple[str, http.client.HTTPConnection]]:
        """The first desk that is reached, connected. Raises: Unreached, Inspected."""
        reasons = []
        for desk in self.desks:
            with contextlib.ExitStack() as stack:
                try:
                    connection = stack.enter_context(self._open(desk, flags))
                    connection.connect()
                except ssl.SSLCertVerificationError as error:
                    self._look_who_answers(desk)
                    reasons.append(f"{desk}: {error}")
                    continue
                except (OSError, http.client.HTTPException, ValueError) as error:
                    reasons.append(f"{desk}: {error}")
                    continue
                yield desk, connection
                return
        raise Unreached(SILENT, found="; ".join(reasons))

    @contextlib.contextmanager
    def _open(self, desk: str, flags: int) -> Iterator[http.client.HTTPConnection]:
        context = ssl.create_default_context(cadata=self.authority)
        context.verify_flags |= ssl.VerifyFlags(flags)
        if self.identity is not None:
            context.load_cert_chain(self.identity / "certificate.pem", self.identity / "key.pem")
        with contextlib.closing(_Connection(desk, context)) as connection:
            yield connection

    def _look_who_answers(self, desk: str) -> None:
        """Raises: Inspected, where it is somebody whom the federation's authority has not signed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with contextlib.closing(_Connection(desk, context)) as connection:
                connection.connect()
                issuer = issuer_of(_shown(connection))
        except (OSError, http.client.HTTPException):
            return
        expected = name_of(self.authority.encode())
        if issuer != expected:
            raise Inspected(
                "the connection to the desk is opened on its way: another certificate answers",
                found=f"signed by {issuer}",
                expected=f"signed by {expected}",
                hint=f"ask whoever runs the network to let {desk} through without inspection of TLS",
            )


def _shown(connection: http.client.HTTPConnection) -> bytes:
    assert isinstance(connection.sock, ssl.SSLSocket)
    shown = connection.sock.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


class _Connection(http.client.HTTPConnection):
    """With TLS inside the proxy's tunnel, to whoever has the desk's certificate, whatever its address."""

    def __init__(self, desk: str, context: ssl.SSLContext) -> None:
        host, _, port = desk.rpartition(":")
        host, self.context = host.strip("[]"), context
        proxy = proxy_for(host)
        if proxy is None:
            super().__init__(host, int(port), timeout=TIMEOUT_S)
        else:
            super().__init__(proxy.host, proxy.port, timeout=TIMEOUT_S)
            self.set_tunnel(
                host, int(port), {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            )

    def connect(self) -> None:
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.getpeername()  # else wrap_socket raises for whoever has hung up, and leaves its own socket open
        self.sock: socket.socket = self.context.wrap_socket(self.sock, server_hostname=DESK)


def proxies_told() -> Sequence[str]:
    """The variables of the environment that say something of proxies, for a person; passwords left out."""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
    return [f"{name}={_without_password(os.environ[name])}" for name in names if os.environ.get(name)]


def _without_password(text: str) -> str:
    """
    >>> _without_password("http://me:secret@proxy:3128"), _without_password("me:secret@proxy")
    ('http://...@proxy:3128', '...@proxy')
    """
    head, at, tail = text.rpartition("@")
    scheme, marks, _ = head.rpartition("://")
    return f"{scheme}{marks}...@{tail}" if at else text


def ask(
    desks: tuple[str, ...], path: str, body: Mapping[str, Any], authority: str, identity: Path | None = None
) -> dict[str, Any]:
    """A question to the first desk that answers; `identity` is a member's folder.

    Raises: Unreached; Said.
    """
    status, told = Dial(desks, authority, identity).post(path, json.dumps(body).encode(), "application/json")
    return as_answer(status, told)


def as_answer(status: int, told: bytes) -> dict[str, Any]:
    """Raises: Unreached for what makes no sense; Said."""
    try:
        found = json.loads(told)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unreached(SILENT, found="an answer that makes no sense")
    if status != OK:
        raise Said(
            visible(str(found.get("message", f"status {status}"))),
            found=visible(str(found.get("found") or "")) or None,
            hint=visible(str(found.get("hint", ""))),
        )
    return found

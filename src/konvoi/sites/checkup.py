"""Whether a site can take part, before it does: way, clock, disk, packages and data, each with what mends it.

Nothing is asked of the server: connections are opened and closed.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from konvoi.errors import KonvoiError
from konvoi.fleet.wire import dial
from konvoi.job.job import Job
from konvoi.recipe import load_recipe, override, recipe_job
from konvoi.security import members as rosters
from konvoi.security.identity import mark, valid_between
from konvoi.security.invitation import Invitation
from konvoi.security.pack import Pack
from konvoi.security.version import Version

ROOM = 1 << 30  # bytes


@dataclass(frozen=True)
class Finding:
    """`mend` is what to do where it is not well."""

    what: str
    well: bool
    found: str
    mend: str = ""


def check(invitation: Invitation, folder: Path, data: Path | None, pack: Pack | None) -> Iterator[Finding]:
    """One after the other; `pack` says what the data have to look like."""
    yield _roster(invitation)
    for desk in invitation.desks:
        yield from _way(invitation, desk)
    free = shutil.disk_usage(folder if folder.exists() else Path()).free
    mend = f"make room: packs, weights and the outbox want {ROOM / 1e9:.0f} GB"
    yield Finding("disk", free >= ROOM, f"{free / 1e9:.1f} GB free", mend)
    if pack is not None:
        yield from _needs(pack)
    if data is not None:
        yield from _data(data, pack)


def _roster(invitation: Invitation) -> Finding:
    """Whom to telephone, before anything is signed."""
    if not invitation.founding:
        return Finding("roster", True, f"{invitation.name} is a founder, who signs it when all of them have joined")
    try:
        found = rosters.follow([Version.read(invitation.founding)])
    except KonvoiError as error:
        return Finding("roster", False, f"{error.message}: {error.found}", "ask for another invitation")
    keys = ", ".join(f"{name} {mark(one.key)}" for name, one in found.entries.items())
    return Finding("roster", True, f"founded by {keys}: compare by telephone; {rosters.who_adds(found)}")


def _way(invitation: Invitation, desk: str) -> Iterator[Finding]:
    """To the server, as far as it goes: of what lies behind the first fault nothing is known."""
    host = desk.rpartition(":")[0].strip("[]")
    try:
        proxy = dial.proxy_for(host)
    except KonvoiError as error:
        yield Finding("proxy", False, str(error.found), str(error.expected))
        return
    if proxy is None:
        yield Finding("proxy", True, ", ".join(dial.proxies_told()) or "none told, none used")
    first = _name(host) if proxy is None else _proxy(proxy, host)
    yield first
    if first.well:
        certificate: list[bytes] = []
        yield _tls(invitation, desk, certificate)
        if certificate:
            yield _clock(certificate[0], invitation.authority.encode())


def _name(host: str) -> Finding:
    try:
        addresses = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, None)})
    except OSError as error:
        return Finding(
            "name",
            False,
            f"{host}: {error.strerror}",
            "ask for another address of the server, or for its name to be known here",
        )
    return Finding("name", True, f"{host} is {', '.join(addresses)}")


def _proxy(proxy: dial.Proxy, host: str) -> Finding:
    told = f"{proxy.host}:{proxy.port}"
    try:
        socket.create_connection((proxy.host, proxy.port), dial.TIMEOUT_S).close()
    except OSError as error:
        return Finding("proxy", False, f"{told}: {error}", f"mend https_proxy, or put {host} into no_proxy")
    return Finding("proxy", True, f"{told}{', with a name and password' if proxy.authorization else ''}")


def _tls(invitation: Invitation, desk: str, certificate: list[bytes]) -> Finding:
    try:
        certificate.append(dial.Dial((desk,), invitation.authority).look())
    except dial.Inspected as error:
        return Finding("TLS", False, f"{error.found}: opened on its way", error.hint)
    except KonvoiError as error:
        why = str(error.found)
        mend = f"let requests out to {desk}"
        if "failed: 407" in why:
            mend = "the proxy wants a name and password: https_proxy=http://NAME:PASSWORD@HOST:PORT"
        elif "failed: 403" in why:
            mend = f"the proxy forbids it: ask for CONNECT to {desk}"
        return Finding("TLS", False, why, mend)
    return Finding("TLS", True, f"{desk} shows the federation's certificate")


def _clock(*certificates: bytes) -> Finding:
    begins, ends = zip(*map(valid_between, certificates), strict=True)
    begin, end, now = max(begins), min(ends), datetime.datetime.now(datetime.UTC)
    told = f"{now:%Y-%m-%d %H:%M} UTC; the server's certificate is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    told += " (the server is not asked what time it is: compared with that, nothing nearer is checked)"
    mend = "set this machine's clock; if it is right, the server needs a new certificate"
    return Finding("clock", begin <= now <= end, told, mend)


def _needs(pack: Pack) -> Iterator[Finding]:
    """Another version is said, and no fault: it may do as well."""
    for name, wanted in pack.requires.items():
        try:
            here = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            yield Finding(f"needs {name}", False, "is not installed", f"install it, in version {wanted}")
            continue
        is_same = here.partition("+")[0] == wanted.partition("+")[0]  # +cpu, +cu130: where it was built for
        yield Finding(f"needs {name}", True, here + ("" if is_same else f"; the pack was made with {wanted}"))


def _data(data: Path, pack: Pack | None) -> Iterator[Finding]:
    if not data.exists():
        yield Finding("data", False, f"{data} is not there", "--data PATH")
        return
    if pack is None:
        yield Finding("data", True, f"{data} is there; what it has to look like is known when a pack is here")
        return
    yield _against(data, pack)


def _against(data: Path, pack: Pack) -> Finding:
    """In this process: whoever asks has read the recipe."""
    import tempfile

    from konvoi.sites.trainer import build, spec_of

    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = job_of(pack, Path(folder))
            prepared, _, _ = build(job, data.resolve(), spec_of(pack.spec), pack.statistics)
    except KonvoiError as error:
        return Finding("data", False, f"{error.message}: {error.found}", f"{error.hint or error.expected or ''}")
    except Exception as error:  # a recipe's own code may raise anything; its message stays here
        return Finding(
            "data", False, f"{type(error).__name__}: {error}", "what the recipe reads, and what lies there, differ"
        )
    seconds = time.monotonic() - begin
    return Finding(
        "data", True, f"{len(prepared.splits.train):,} samples that look as the pack wants ({seconds:.1f} s)"
    )


def job_of(pack: Pack, folder: Path) -> Job:
    path = pack.unpack(folder)
    return override(recipe_job(load_recipe(path), path), pack.overrides)


def as_rows(findings: Sequence[Finding]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("", "what", "found", "mend")]
    rows += [("ok" if one.well else "NO", one.what, one.found, "" if one.well else one.mend) for one in findings]
    return rows

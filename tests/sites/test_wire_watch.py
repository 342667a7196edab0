"""Everything that leaves a site, tapped before it is encrypted."""

from __future__ import annotations

import json

import pytest

from konvoi.fleet.wire.dial import Dial
from konvoi.plan.federated import fedavg
from konvoi.security import outbox
from konvoi.security.leaving import KIND
from konvoi.sites.protocol import PROTOCOL
from tests.sites.conftest import make_pack


@pytest.fixture
def tapped(monkeypatch):
    """(site, path, bytes) of every request."""
    found = []
    post = Dial.post

    def tap(self, path, body, kind="application/octet-stream"):
        found.append((self.identity.name if self.identity else "", path, body))
        return post(self, path, body, kind)

    monkeypatch.setattr(Dial, "post", tap)
    return found


def test_every_byte_that_leaves_is_of_a_listed_field_and_in_the_outbox(federation, tmp_path, tapped):
    pack = make_pack(tmp_path, fedavg(rounds=4), tell=("loss", "valid"))
    sites = {name: federation.site(name, pack, data=number) for name, number in (("a", "7"), ("b", "7"), ("c", "3"))}
    for site in sites.values():
        federation.run(site)
    federation.submit(pack, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    federation.end()
    listed = sites["a"].house.pack("study")[0].leaves
    updates = {}
    for name, path, body in tapped:
        if path == "/enrol":
            assert json.loads(body).keys() == {"name", "token", "request", "terms"}
            continue
        assert path == "/frame"
        kind, _ = (listed if body[:KIND].startswith(b"update") else PROTOCOL).read(body)  # wholly, or it raises
        if kind == "update":
            updates.setdefault(name, []).append(len(body))
    assert updates["a"] == updates["b"] == updates["c"]  # whatever their data are
    assert len(updates["a"]) == 4
    for name, site in sites.items():
        entries = [*outbox.read(site.house.folder / "outbox.jsonl")]
        frames = [body for who, path, body in tapped if who == name and path == "/frame"]
        assert sum(one.size for one in entries) == sum(map(len, frames))
        assert len(entries) == len(frames)


def test_nothing_is_sent_to_anybody_else(federation, tmp_path, monkeypatch):
    """No telemetry: the only address that anything connects to is the desk's."""
    import socket

    asked, connect = set(), socket.socket.connect

    def watched(self, address):
        asked.add(address[:2] if isinstance(address, tuple) else address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    pack = make_pack(tmp_path, fedavg(rounds=2))
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    assert asked == {("127.0.0.1", federation.port)}

"""Everything that leaves a site, tapped before it is encrypted."""

from __future__ import annotations

import itertools
import json
import re
import ssl
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from konvoi.fleet.wire.dial import Dial
from konvoi.plan.federated import fedavg
from konvoi.security import outbox
from konvoi.security import pack as packs
from konvoi.security.invitation import Invitation
from konvoi.security.leaving import KIND
from konvoi.sites import part
from konvoi.sites.house import House
from konvoi.sites.orders import Result
from konvoi.sites.protocol import ERRORS, NOT_FINITE, PROTOCOL, TRAINS
from konvoi.sites.trainer import Surveyor, Trainer
from konvoi.verbs import member, packing
from konvoi.verbs import site as people
from tests.sites.conftest import Fake, make_pack

PAGE = Path(__file__).parents[2] / "docs" / "at-a-site.md"
RECIPE = """
import numpy as np
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0.2)

plan = kv.fedavg(rounds=3, deadline_s=60.0)

def job():
    return kv.Job(
        model=kv.models.mlp(widths=(4,)), data=kv.data.slot(read, example="{example}"),
        objective=kv.objectives.classification(), optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(), global_batch=8, validate_every=0,
    )
"""


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


@pytest.fixture
def wired(tapped, monkeypatch):
    """By site: every request as its socket was given it, the last step before TLS encrypts it."""
    found, now = {}, threading.local()
    post, send = Dial.post, ssl.SSLSocket.send

    def asking(self, path, body, kind="application/octet-stream"):
        now.request = bytearray()  # of this thread
        found.setdefault(self.identity.name if self.identity else "", []).append(now.request)
        try:
            return post(self, path, body, kind)
        finally:
            now.request = None

    def sending(self, data, flags=0):
        count = send(self, data, flags)
        if getattr(now, "request", None) is not None:  # else it is the server's
            now.request += bytes(data)[:count]
        return count

    monkeypatch.setattr(Dial, "post", asking)
    monkeypatch.setattr(ssl.SSLSocket, "send", sending)
    return found


def decoded(listed, body):
    """A frame's kind and fields, if these are all that is in it."""
    by = listed if body[:KIND].startswith(b"update") else PROTOCOL
    kind, found = by.read(body)
    assert by.build(kind, found) == body
    assert [*found] == [field.name for field in by.frame(kind).fields]
    return kind, found


def frames_of(tapped, name):
    return [body for who, path, body in tapped if who == name and path == "/frame"]


def sequence(listed, tapped, name, run):
    """Kinds and sizes of what a site says of a run, one after the other. How often it asks in between goes by the
    clock."""
    found = [(*decoded(listed, body), len(body)) for body in frames_of(tapped, name) if _is_of(body, run)]
    told = [(kind, size) for kind, fields, size in found if fields.get("doing") != TRAINS]
    return [one for one, _ in itertools.groupby(told)]


def _is_of(body, run):
    kind = body[:KIND].rstrip(b"\0")
    return kind == b"get" or body[KIND:].startswith(bytes.fromhex(run))


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
            continue
        assert path == "/frame"
        if decoded(listed, body)[0] == "update":
            updates.setdefault(name, []).append(len(body))
    assert updates["a"] == updates["b"] == updates["c"]  # whatever their data are
    assert len(updates["a"]) == 4
    for name, site in sites.items():
        entries = [*outbox.read(site.house.folder / "outbox.jsonl")]
        frames = frames_of(tapped, name)
        assert sum(one.size for one in entries) == sum(map(len, frames))
        assert len(entries) == len(frames)


class InProcess:
    """In place of the process that computes: the same, here, one at a time."""

    lock = threading.Lock()

    def __init__(self, told, folder):
        self.told, self.does = told, None

    def train(self, order, *, most_s, is_over):
        with self.lock:
            self.does = self.does or (Surveyor if self.told.kind == "survey" else Trainer)(self.told)
            return self.does.round(order)

    def end(self):
        pass


@pytest.fixture
def data(tmp_path):
    """Two sites' data, as many and as different as can be."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20, 3)).astype(np.float32)
    np.savez(tmp_path / "example.npz", x=x, y=np.arange(20) % 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    np.savez(tmp_path / "b.npz", x=10 * np.ones_like(x), y=np.zeros(20, np.int64))
    (tmp_path / "study.py").write_text(RECIPE.format(example=tmp_path / "example.npz"))
    return tmp_path


@pytest.mark.parametrize("kind", ["training", "survey"])
def test_what_two_sites_say_differs_in_nothing_but_values_whatever_their_data(
    federation, data, tapped, wired, monkeypatch, kind
):
    monkeypatch.setattr(part, "Process", InProcess)
    recipe, told = data / "study.py", {"purpose": "to see", "key": None, "out": data / "x.pack"}
    monkeypatch.setenv("HOME", str(data))
    path, made = (packing.pack_survey if kind == "survey" else packing.pack)(recipe, **told)
    for name in "ab":
        federation.run(federation.site(name, path, data=str(data / f"{name}.npz")))
    federation.submit(path)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    federation.wait(lambda: all(one.is_done for site, *_ in federation.sites for one in site.parts.values()))
    run = federation.hosted().run.hash
    federation.end()
    a, b = (sequence(made.leaves, tapped, name, run) for name in "ab")
    assert a == b
    assert [one for one, _ in a].count("update") == 3
    # What is around a frame is the same, too, and nothing else goes down the socket.
    heads = set()
    for name in "ab":
        requests = [bytes(one).partition(b"\r\n\r\n") for one in wired[name] if one]
        bodies = Counter(body for _, _, body in requests)
        assert not bodies - Counter(frames_of(tapped, name))
        assert sum(number for body, number in bodies.items() if body.startswith(b"update")) == 3
        heads |= {(len(body), head) for head, _, body in requests}
    assert len(heads) == len({size for size, _ in heads})  # a head follows from a size
    words = {line.partition(b" ")[0] for _, head in heads for line in head.split(b"\r\n")}
    assert words == {b"POST", b"Host:", b"Accept-Encoding:", b"Content-Length:", b"Content-Type:"}
    values = [
        decoded(made.leaves, body)[1] for name in "ab" for body in frames_of(tapped, name) if body.startswith(b"update")
    ]
    assert len({str(one) for one in values}) == len(values) == 6


def test_an_error_is_a_number_of_the_list_and_nothing_else(federation, tmp_path, tapped, monkeypatch):
    class Fails(Fake):
        def train(self, order, **_):
            Path(order.out).write_text("a patient's name")
            return Result(NOT_FINITE)

    monkeypatch.setattr(part, "Process", Fails)
    pack = make_pack(tmp_path)
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: any(body.startswith(b"error") for _, _, body in tapped))
    federation.end()
    listed = packs.read(pack)[0].leaves
    told = [decoded(listed, body) for _, path, body in tapped if path == "/frame"]
    errors = [found for kind, found in told if kind == "error"]
    assert errors
    assert {*errors[0]} == {"run", "code", "count"}
    assert all(int(one["code"]) in ERRORS for one in errors)
    assert {int(one["count"]) for one in errors} == {1}  # each was heard
    assert "update" not in [kind for kind, _ in told]


def said_of(path):
    """What the page of a site says that this request says, by name."""
    (row,) = re.findall(rf"^\| `{path}`.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {*re.findall(r"`([a-z]+)`", row)}


def test_to_enrol_and_to_leave_say_what_the_page_says_and_no_more(federation, tmp_path, tapped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = federation.desk.roster.invite("st-marys", 0.0, hours=1e6)
    pem = federation.authority.certificate.decode()
    invitation = Invitation("fed", "id", "st-marys", federation.dial, pem, token, 1e12, "", (), "", "terms")
    folder = member.enlist(invitation, None, federation.said.append) / "st-marys"
    people.leave(House(folder), invitation)
    enrol, leave = ((path, json.loads(body)) for _, path, body in tapped)
    assert enrol[0] == "/enrol"
    assert {*enrol[1]} == said_of("/enrol") == {"name", "token", "request", "terms"}
    assert {name: enrol[1][name] for name in ("name", "token", "terms")} == {
        "name": invitation.name,
        "token": invitation.token,
        "terms": invitation.terms,
    }
    request = x509.load_pem_x509_csr(enrol[1]["request"].encode())
    assert request.subject.rfc4514_string() == "CN=st-marys"
    assert not [*request.extensions]
    assert leave == ("/leave", {})
    assert said_of("/leave") == set()


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

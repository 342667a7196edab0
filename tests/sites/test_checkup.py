"""Before a site joins, it is told what is wrong and what mends it; and nobody learns anything of it by that."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import socket
from collections import namedtuple

import numpy as np
import pytest

from konvoi.cli import main
from konvoi.security import pack as packs
from konvoi.security.identity import Authority
from konvoi.security.invitation import Invitation
from konvoi.sites import checkup
from tests.fleet.wire.listener import Listener, desk
from tests.sites.conftest import make_pack

RECIPE = b"""
import numpy as np
import konvoi as kv

def read(path):
    found = np.load(path)
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0)

def job():
    return kv.Job(
        model=kv.models.mlp(widths=(4,)), data=kv.data.slot(read, example="nowhere.npz"),
        objective=kv.objectives.classification(), optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(), global_batch=8, validate_every=0,
    )
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def invited(authority, *desks):
    return Invitation("fed", "id", "site", desks, authority.certificate.decode(), "token", 1e12, "", (), "", "terms")


def check(invitation, folder, data=None, pack=None):
    """By what is looked at."""
    return {one.what: one for one in checkup.check(invitation, folder, data, pack)}


def test_where_all_is_well_the_server_hears_no_byte_and_sees_no_name(tmp_path):
    authority, context = desk(tmp_path)
    with Listener(context) as server:
        found = check(invited(authority, server.desk), tmp_path)
    assert [*found] == ["roster", "proxy", "name", "TLS", "clock", "disk"]
    assert all(one.well for one in found.values()), found
    assert server.told == [b""]
    assert server.shown == [None]
    assert "the server is not asked what time it is" in found["clock"].found


def test_a_name_that_is_not_known_is_said_and_nothing_is_guessed_from_it(tmp_path, monkeypatch):
    def unknown(host, *_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = check(invited(Authority.make("test"), "far.example:7700"), tmp_path)
    assert "far.example: Name or service not known" in found["name"].found
    assert "another address" in found["name"].mend
    assert "TLS" not in found


def test_a_server_that_cannot_be_reached_is_told_from_one_that_is_not_the_federations(tmp_path):
    authority, context = desk(tmp_path)
    found = check(invited(authority, "127.0.0.1:1"), tmp_path)
    assert "refused" in found["TLS"].found
    assert found["TLS"].mend == "let requests out to 127.0.0.1:1"
    with Listener(context) as server:
        other = Authority.make("other")
        found = check(invited(other, server.desk), tmp_path)
    assert "signed by konvoi test: opened on its way" in found["TLS"].found
    assert "without inspection" in found["TLS"].mend
    assert not any(server.told)


@pytest.mark.parametrize(
    ("answer", "found", "mend"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407", "NAME:PASSWORD@HOST:PORT"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403", "ask for CONNECT to far.example:4071"),
        (b"HTTP/1.1 502 407 403\r\n\r\n", "502", "let requests out to far.example:4071"),
    ],
)
def test_what_a_proxy_has_against_it_is_said(tmp_path, monkeypatch, answer, found, mend):
    with Listener(answer=answer) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:secret@{proxy.desk}")
        told = check(invited(Authority.make("test"), "far.example:4071"), tmp_path)
    assert told["proxy"].well
    assert proxy.told[0] == b""  # whether it is there
    assert proxy.told[1].startswith(b"CONNECT far.example:4071 ")
    assert f"failed: {found}" in told["TLS"].found
    assert mend in told["TLS"].mend
    assert "secret" not in str([*told.values()])


def test_a_proxy_that_is_not_there_or_is_none_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    found = [*checkup.check(invited(Authority.make("test"), "far.example:7700"), tmp_path, None, None)]
    assert [(one.what, one.well) for one in found] == [("roster", True), ("proxy", False), ("disk", True)]
    assert "no_proxy" in found[1].mend
    monkeypatch.setenv("https_proxy", "https://me:secret@127.0.0.1:1")
    found = [*checkup.check(invited(Authority.make("test"), "far.example:7700"), tmp_path, None, None)]
    assert [(one.what, one.well) for one in found] == [("roster", True), ("proxy", False), ("disk", True)]
    assert found[1].mend == "https_proxy=http://HOST:PORT"
    assert "secret" not in str(found)


@pytest.mark.parametrize(("begins", "ends"), [(-9, -5), (5, 9)], ids=["expired", "not yet valid"])
def test_a_certificate_out_of_its_time_is_the_clocks_fault_or_the_servers(tmp_path, begins, ends):
    authority, context = desk(tmp_path, begins=begins, ends=ends)
    with Listener(context) as server:
        found = check(invited(authority, server.desk), tmp_path)
    assert found["TLS"].well
    assert not found["clock"].well
    assert "set this machine's clock" in found["clock"].mend
    assert not any(server.told)


def test_one_certificate_of_two_out_of_its_time_is_enough(tmp_path):
    authority, _ = desk(tmp_path, begins=-1)
    assert checkup._clock(authority.certificate).well
    desk(tmp_path / "old", begins=-9, ends=-5, of=authority)
    old = (tmp_path / "old" / "certificate.pem").read_bytes()
    assert not checkup._clock(authority.certificate, old).well
    assert not checkup._clock(old, authority.certificate).well


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 200_000_000))
    found = check(invited(Authority.make("test")), tmp_path)["disk"]
    assert (found.well, found.found) == (False, "0.2 GB free")
    assert "make room" in found.mend


@pytest.fixture
def pack(tmp_path, monkeypatch):
    def make(spec, **changes):
        made = packs.read(make_pack(tmp_path, recipe=RECIPE))[0]
        return dataclasses.replace(made, spec=spec, **changes)

    return make


def test_data_are_looked_at_as_the_pack_wants_them(tmp_path, pack):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=draw.normal(size=(20, 4)).astype("f4"), y=np.arange(20) % 2)
    nobody = invited(Authority.make("test"))
    fits, wider = ({"num_classes": 2, "input_shape": [size]} for size in (4, 5))
    found = check(nobody, tmp_path, tmp_path / "data.npz", pack(fits))["data"]
    assert found.well, found
    assert found.found.startswith("20 samples that look as the pack wants")
    found = check(nobody, tmp_path, tmp_path / "data.npz", pack(wider))["data"]
    assert not found.well
    assert "4" in found.found
    np.savez(tmp_path / "data.npz", z=np.zeros(3))
    found = check(nobody, tmp_path, tmp_path / "data.npz", pack(fits))["data"]
    assert not found.well
    assert "KeyError" in found.found
    found = check(nobody, tmp_path, tmp_path / "none.npz", pack(fits))["data"]
    assert "is not there" in found.found


def test_each_version_that_a_pack_states_is_compared_with_what_is_here(tmp_path, pack):
    here = importlib.metadata.version("numpy")
    requires = {"numpy": here, "torch": "0.1", "no-such-package": "3.1", "": "1"}
    found = check(invited(Authority.make("test")), tmp_path, None, pack({}, requires=requires))
    assert found["needs numpy"].found == here
    assert found["needs torch"].well
    assert found["needs torch"].found.endswith("; the pack was made with 0.1")
    assert not found["needs no-such-package"].well
    assert "3.1" in found["needs no-such-package"].mend
    assert not found["needs "].well


def test_the_command_draws_a_table_and_fails_where_something_is_wrong(tmp_path, monkeypatch, capsys):
    authority, context = desk(tmp_path)
    monkeypatch.chdir(tmp_path)
    with Listener(context) as server:
        (tmp_path / "x.invite").write_text(invited(authority, server.desk).as_text())
        assert main(["federation", "check", "x.invite"]) == 0
        assert main(["federation", "check", "x.invite", "--data", "none.npz"]) == 1
    said = capsys.readouterr()
    assert "ok  TLS" in said.out
    assert "NO  data" in said.out
    assert "this site cannot take part yet" in said.err
    assert [*map(bool, server.told)] == [False, False]

"""A federation's desk over real sockets, with real certificates."""

import json
import socket
import ssl
import threading

import pytest

from konvoi.errors import FleetError
from konvoi.fleet.desk import Desk
from konvoi.fleet.wire.dial import Inspected, Unreached, ask
from konvoi.security.identity import Authority, Identity, name_of
from konvoi.security.identity import ask as make_key
from konvoi.security.roster import DESK, Roster


@pytest.fixture
def clock():
    class Clock:
        now = 1_000_000.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def desk(tmp_path, clock):
    authority = Authority.make("test")
    authority.save(tmp_path / "authority")
    authority.issue(DESK).save(tmp_path / DESK)
    roster = Roster.open(tmp_path / "roster.jsonl")
    said = []
    with Desk(
        tmp_path, roster, terms="terms", num_first=2, address=("127.0.0.1", 0), say=said.append, clock=clock
    ) as desk:
        desk.said = said
        yield desk


def at(desk):
    return (f"127.0.0.1:{desk.port}",)


def pem(desk):
    return desk.authority.certificate.decode()


def enrol(desk, name, folder, *, token=None, terms="terms"):
    token = token or desk.roster.invite(name, desk.clock())
    key, request = make_key(name)
    body = {"name": name, "token": token, "request": request.decode(), "terms": terms}
    told = ask(at(desk), "/enrol", body, pem(desk))
    Identity(name, told["certificate"].encode(), key, desk.authority.certificate).save(folder / name)
    return folder / name


def meet(desk, identity, **body):
    return ask(at(desk), "/meet", {"terms": "terms", "address": ":1", "facts": {}} | body, pem(desk), identity)


def test_members_enrol_meet_and_find_each_other(desk, tmp_path):
    a, b = (enrol(desk, name, tmp_path / "members") for name in "ab")
    assert meet(desk, a)["begun"] == []
    told = meet(desk, b, address="far.example:7", facts={"round": 3})
    assert told["begun"] == ["a", "b"]
    assert told["addresses"] == {"a": "127.0.0.1:1", "b": "far.example:7"}
    assert desk.status()["members"]["b"]["round"] == 3
    assert any("training begins with a, b" in line for line in desk.said)


def test_who_is_silent_is_not_counted_among_those_that_begin(desk, tmp_path, clock):
    a, b = (enrol(desk, name, tmp_path / "members") for name in "ab")
    meet(desk, a)
    clock.now += 60
    assert meet(desk, b)["begun"] == []
    assert meet(desk, a)["begun"] == ["a", "b"]


def test_a_token_is_used_once_and_by_its_member_with_the_same_terms(desk, tmp_path):
    token = desk.roster.invite("a", desk.clock())
    with pytest.raises(FleetError, match="another recipe"):
        enrol(desk, "a", tmp_path, token=token, terms="others")
    with pytest.raises(FleetError, match="not known"):
        enrol(desk, "b", tmp_path, token=token)
    enrol(desk, "a", tmp_path, token=token)
    with pytest.raises(FleetError, match="was used"):
        enrol(desk, "a", tmp_path, token=token)
    assert desk.status()["refused"]


def test_the_name_in_a_request_is_not_believed(desk, tmp_path):
    token = desk.roster.invite("a", desk.clock())
    _, request = make_key("b")
    body = {"name": "a", "token": token, "request": request.decode(), "terms": "terms"}
    told = ask(at(desk), "/enrol", body, pem(desk))
    assert name_of(told["certificate"].encode()) == "a"
    assert desk.roster.members.keys() == {"a"}


def test_strangers_and_the_revoked_may_ask_nothing(desk, tmp_path):
    a = enrol(desk, "a", tmp_path / "members")
    for path in ("/meet", "/status", "/leave"):
        with pytest.raises(FleetError, match="only members"):
            ask(at(desk), path, {}, pem(desk))
    meet(desk, a)
    Roster.open(desk.roster.path).revoke("a", desk.clock())  # as another process does
    with pytest.raises(FleetError, match="no member's any more"):
        meet(desk, a)
    desk.authority.issue("a").save(tmp_path / "stolen")  # signed by the same authority, and not the member's
    with pytest.raises(FleetError, match="no member's any more"):
        meet(desk, tmp_path / "stolen")


def test_a_certificate_of_another_authority_is_refused(desk, tmp_path):
    other = Authority.make("other")
    other.issue("a").save(tmp_path / "other")
    with pytest.raises(Unreached):
        ask(at(desk), "/meet", {}, pem(desk), tmp_path / "other")
    with pytest.raises(Inspected, match="another certificate answers"):
        ask(at(desk), "/enrol", {}, other.certificate.decode())


def test_a_desk_that_begins_anew_knows_who_had_begun(desk, tmp_path, clock):
    a, b = (enrol(desk, name, tmp_path / "members") for name in "ab")
    meet(desk, a), meet(desk, b)
    again = Desk(tmp_path, Roster.open(tmp_path / "roster.jsonl"), terms="terms", num_first=2, address=("127.0.0.1", 0))
    with again:
        told = meet(again, a)
    assert told["begun"] == ["a", "b"]
    assert told["addresses"] == {"a": "127.0.0.1:1"}  # b has not said yet where it is


def test_training_begins_with_those_who_are_needed(desk, tmp_path):
    desk.needed = ("c",)
    a, b, c = (enrol(desk, name, tmp_path / "members") for name in "abc")
    meet(desk, a)
    assert meet(desk, b)["begun"] == []
    assert meet(desk, c)["begun"] == ["a", "c"]


def test_who_has_left_is_seen_to_have(desk, tmp_path):
    a = enrol(desk, "a", tmp_path / "members")
    meet(desk, a)
    ask(at(desk), "/leave", {}, pem(desk), a)
    assert desk.status()["members"]["a"]["left"]


def test_silence_and_nonsense_keep_nobody_waiting(desk, tmp_path):
    idle = [socket.create_connection(("127.0.0.1", desk.port)) for _ in range(20)]  # half-open: no TLS comes
    context = ssl.create_default_context(cadata=pem(desk))
    for request in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST /enrol HTTP/1.0\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /enrol HTTP/1.0\r\nContent-Length: x\r\n\r\n",
        b"POST /enrol HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]",
        b"POST /enrol HTTP/1.0\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000,
        b"\0\1\2\r\n\r\n",
    ):
        with context.wrap_socket(socket.create_connection(("127.0.0.1", desk.port)), server_hostname=DESK) as one:
            one.sendall(request)
            one.settimeout(5)
            assert b" 200 " not in one.recv(1000)
    a = enrol(desk, "a", tmp_path)
    done = []
    threads = [threading.Thread(target=lambda: done.append(meet(desk, a))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 8
    for one in idle:
        one.close()


LACKING = [{}, {"name": 3}, {"name": "a", "token": [], "request": "x"}, {"name": "a", "token": "t"}]


@pytest.mark.parametrize("body", LACKING)
def test_a_request_that_lacks_something_is_told_so(desk, body):
    with pytest.raises(FleetError, match=r"lacks something|not known"):
        ask(at(desk), "/enrol", body, pem(desk))


def test_the_next_desk_is_asked_where_one_does_not_answer(desk, tmp_path):
    desk.roster.invite("a", desk.clock())
    with pytest.raises(FleetError, match="not known"):
        ask(("127.0.0.1:1", *at(desk)), "/enrol", {"name": "a", "token": "t", "request": "r"}, pem(desk))
    with pytest.raises(Unreached, match=r"127\.0\.0\.1:1"):
        ask(("127.0.0.1:1", "nonsense"), "/enrol", {}, pem(desk))
    assert json.dumps(desk.status())

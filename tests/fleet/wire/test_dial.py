"""Requests go to one desk, by the way that the environment names, and passwords are shown to nobody."""

from __future__ import annotations

import pytest

from konvoi.errors import FleetError
from konvoi.fleet.wire import dial
from konvoi.fleet.wire.dial import Dial, Unreached, as_answer
from tests.fleet.wire.listener import Listener, desk

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_what_one_desk_was_given_is_given_to_no_other(tmp_path):
    """The outbox has one entry for it."""
    authority, context = desk(tmp_path)
    with Listener(context) as first, Listener(context, ANSWER) as second:
        both = Dial((first.desk, second.desk), authority.certificate.decode())
        with pytest.raises(Unreached, match="does not answer") as raised:
            both.post("/frame", b"update")
        assert first.desk in raised.value.found
    assert [one.endswith(b"update") for one in first.told] == [True]
    assert second.told == []


def test_where_a_desk_is_not_reached_the_next_is_given_it(tmp_path):
    authority, context = desk(tmp_path)
    _, other = desk(tmp_path / "expired", begins=-9, ends=-5, of=authority)
    with Listener(context, ANSWER) as good, Listener(other, ANSWER) as expired:
        several = Dial(("127.0.0.1:1", expired.desk, good.desk), authority.certificate.decode())
        assert several.post("/frame", b"update") == (200, b"{}")
    assert len(good.told) == 1
    assert not any(expired.told)  # nothing is said to whom cannot be trusted now


@pytest.mark.parametrize(
    "told",
    [
        "https://me:secret@proxy:3128",
        "socks5://me:secret@proxy:3128",
        "http://me:sec#ret@proxy:3128",
        "http://me:secret@proxy:many",
        "http://me:secret@",
    ],
)
def test_a_proxys_password_is_in_no_message(monkeypatch, told):
    monkeypatch.setenv("https_proxy", told)
    with pytest.raises(FleetError, match="a proxy is reached by HTTP") as raised:
        dial.proxy_for("far.example")
    assert "sec" not in str(raised.value)
    assert "sec" not in str(dial.proxies_told())
    monkeypatch.setenv("https_proxy", "me:secret@proxy:3128")
    found = dial.proxy_for("far.example")
    assert (found.host, found.port) == ("proxy", 3128)
    assert found.authorization not in repr(found)
    assert "sec" not in str(dial.proxies_told())


def test_what_a_server_says_cannot_draw_on_a_screen():
    with pytest.raises(FleetError) as raised:
        as_answer(403, b'{"message": "no\\u001b[2K", "found": "\\u202ex\\nkonvoi: all is well", "hint": "\\u0007"}')
    assert str(raised.value) == "no\\x1b[2K\n  found:    \\u202ex\\nkonvoi: all is well\n  hint: \\x07"


def test_around_a_request_there_is_nothing_of_who_asks(tmp_path):
    authority, context = desk(tmp_path)
    with Listener(context, ANSWER) as server:
        Dial((server.desk,), authority.certificate.decode()).post("/frame", b"update")
    head, _, body = server.told[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert (first, body) == ("POST /frame HTTP/1.1", b"update")
    assert {one.partition(":")[0] for one in headers} == {"Host", "Accept-Encoding", "Content-Length", "Content-Type"}

"""A server, a newcomer or chance against a roster that founders sign, as sites and those who approve meet it."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from konvoi.errors import FleetError, StateError
from konvoi.fleet.wire.dial import Said, ask
from konvoi.security.identity import ask as make_key
from konvoi.security.identity import mark, public_of
from konvoi.security.members import follow, founding
from konvoi.security.version import APPROVER, Version
from konvoi.sites.house import House
from konvoi.sites.protocol import Facts, Started
from konvoi.sites.refusing import forbidden
from konvoi.verbs import approving, member
from tests.sites.conftest import make_pack
from tests.sites.test_roster import COMING, FIRST, KEYS, ZOE, entry, founded, house, lines, signed, told

__all__ = ["founded", "house"]  # fixtures


def test_who_waits_to_be_approved_learns_nothing_of_the_others(founded):
    a = founded.enlist("a")
    assert "not all founders have joined yet" in lines(approving.waiting(*a))
    b = founded.enlist("b")
    for one in (a, b):
        approving.approve(*one, "founders", mark(Version(founded.hall.roster.signing.founding(), {}).hash))
    c, of_c = founded.enlist("c")
    for path in ("/roster", "/status"):
        with pytest.raises(Said, match="c is not on the roster yet: 0 of 2"):
            ask(of_c.desks, path, {}, of_c.authority, c.folder)
    for one in (a, b):
        approving.approve(*one, "c", approving.key_of(c))
    assert ask(of_c.desks, "/roster", {}, of_c.authority, c.folder)["waiting"] == []


def test_a_founder_signs_one_founding_and_no_other(founded, monkeypatch):
    """A server that has two, each signed by all, could show one to some newcomers and another to others."""
    a, of_a = founded.enlist("a")
    founded.enlist("b")
    mine = founded.hall.roster.signing.came["a"]
    texts = [founding("id", needed, [mine, entry("zoe", APPROVER)]) for needed in (1, 2)]
    shown = {"versions": [], "waiting": [], "founding": texts[0], "signed": {}}
    sent = []

    def lie(desks, path, body, *given):
        if path == "/sign":
            sent.append(body["text"])
        return shown

    monkeypatch.setattr(approving.dial, "ask", lie)
    for _ in range(2):  # the first may not have been heard
        approving.approve(a, of_a, "founders", mark(Version(texts[0], {}).hash))
    shown["founding"] = texts[1]
    with pytest.raises(StateError, match="other founders were signed for here"):
        approving.approve(a, of_a, "founders", mark(Version(texts[1], {}).hash))
    assert sent == [texts[0]] * 2


def test_a_founding_that_is_done_is_not_signed_again(founded, monkeypatch):
    (a, of_a), _ = founded.found()
    real, held = approving.dial.ask, a.founded()
    monkeypatch.setattr(approving.dial, "ask", lambda *given: {**real(*given), "founding": ZOE})
    with pytest.raises(FleetError, match="nothing that founders have to sign"):
        approving.approve(a, of_a, "founders", mark(Version(ZOE, {}).hash))
    assert a.founded() == held


@pytest.mark.parametrize("wrong", [{"a": 5}, {"": None}])
def test_signers_that_make_no_sense_are_refused(founded, monkeypatch, wrong):
    (a, of_a), _ = founded.found()
    real = approving.dial.ask
    monkeypatch.setattr(approving.dial, "ask", lambda *given: {**real(*given), "signed": wrong})
    with pytest.raises(FleetError, match="makes no sense"):
        lines(approving.waiting(a, of_a))


def test_a_site_takes_no_part_where_the_roster_has_another_key_as_its_own(house, tmp_path):
    """Whoever approved it has not heard its key: a server has put its own there."""
    pack, signer = house.take_in(make_pack(tmp_path))
    house.approve(pack, signer)
    house.take_roster(told(FIRST, COMING), FIRST.hash)
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    facts = Facts(run, "runs", 1, 3, "ab" * 32, 32, ("a", "b", "c"), True, "")
    (house.folder / "key.pem").write_bytes(KEYS["c"])
    assert forbidden(facts, run, pack, signer, house, "c") == []
    other = make_key("c")[0]
    (house.folder / "key.pem").write_bytes(other)
    (why,) = forbidden(facts, run, pack, signer, house, "c")
    assert why.startswith("the roster has another's key as c's: ")
    assert why.endswith(mark(public_of(other)))


def test_a_certificate_is_kept_only_if_it_is_for_this_members_key(founded, tmp_path, monkeypatch):
    founded.found()
    monkeypatch.chdir(tmp_path)
    _, invitation = founded.enlist("c")
    invitation = dataclasses.replace(invitation, name="d", expires=1e12)
    request = make_key("d")[1]
    answers = [founded.authority.sign(request, "d").decode(), founded.authority.sign(make_key("e")[1], "e").decode()]
    for answer in ({"certificate": answers[0]}, {"certificate": answers[1]}, {"certificate": "x"}, {}):
        monkeypatch.setattr(member.dial, "ask", lambda *given, answer=answer: answer)
        with pytest.raises(FleetError, match="certificate"):
            member.enlist(invitation, None, print)
    assert not (tmp_path / member.ROOT / invitation.federation / "d").exists()


def test_an_answer_that_was_on_its_way_while_a_version_came_has_not_gone_back(house):
    since = len(house.versions())
    house.take_roster(told(FIRST, COMING), FIRST.hash)
    assert [*house.take_roster(told(FIRST), FIRST.hash, since).sites] == ["a", "b", "c"]
    assert house.versions() == [FIRST, COMING]
    with pytest.raises(StateError, match="it has gone back"):
        house.take_roster(told(FIRST), FIRST.hash, len(house.versions()))
    with pytest.raises(StateError, match="another than the one held here"):
        house.take_roster(told(signed(FIRST.text.replace('"id"', '"jd"'), a="a", b="b")), FIRST.hash, since)


def test_two_who_take_a_roster_at_once_do_not_take_it_back(house, monkeypatch):
    """The agent is shown more, and a command that began before it writes after it."""
    later = signed(follow([FIRST, COMING]).without("c"), a="a", b="b")
    read, halfway, done = House.versions, threading.Event(), threading.Event()

    def slow(self):
        found = read(self)
        if threading.current_thread() is command:
            halfway.set()
            done.wait(0.3)
        return found

    monkeypatch.setattr(House, "versions", slow)
    command = threading.Thread(target=house.take_roster, args=(told(FIRST, COMING), FIRST.hash))
    command.start()
    halfway.wait(5)
    House(house.folder).take_roster(told(FIRST, COMING, later), FIRST.hash)
    done.set()
    command.join()
    assert read(house) == [FIRST, COMING, later]

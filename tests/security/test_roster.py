"""Who may come, and who may no longer."""

import errno
import json
import os
import stat

import pytest

from konvoi.errors import FleetError, StateError
from konvoi.security.invitation import Invitation
from konvoi.security.roster import Roster

NOW = 1_000_000.0


@pytest.fixture
def roster(tmp_path):
    return Roster.open(tmp_path / "roster.jsonl")


def test_an_invitation_is_for_one_member_one_use_and_some_time(roster):
    token = roster.invite("ward-a", NOW, hours=2)
    roster.accept("ward-a", token, NOW + 7000)
    for name, wrong, when in (("ward-a", token + "x", NOW), ("ward-b", token, NOW), ("ward-a", "", NOW)):
        with pytest.raises(FleetError, match="not known"):
            roster.accept(name, wrong, when)
    with pytest.raises(FleetError, match="expired"):
        roster.accept("ward-a", token, NOW + 7201)
    roster.admit("ward-a", "aa:bb", NOW)
    with pytest.raises(FleetError, match="was used"):
        roster.accept("ward-a", token, NOW)
    assert roster.is_member("ward-a", "aa:bb")
    assert not roster.is_member("ward-a", "aa:cc")


def test_a_second_invitation_ends_the_first(roster):
    first, second = roster.invite("a", NOW), roster.invite("a", NOW)
    with pytest.raises(FleetError, match="not known"):
        roster.accept("a", first, NOW)
    roster.accept("a", second, NOW)


def test_no_token_is_written_down(roster):
    token = roster.invite("a", NOW)
    assert token not in roster.path.read_text()
    assert stat.S_IMODE(roster.path.stat().st_mode) == 0o600


def test_who_is_revoked_is_no_member_and_nobody_else_gets_the_name(roster):
    roster.invite("a", NOW)
    roster.admit("a", "one", NOW)
    roster.revoke("a", NOW)
    assert not roster.is_member("a", "one")
    with pytest.raises(FleetError, match="no such member"):
        roster.revoke("a", NOW)
    with pytest.raises(FleetError, match="was revoked"):
        roster.invite("a", NOW)


def test_an_invitation_that_was_not_used_can_be_revoked(roster):
    token = roster.invite("a", NOW)
    roster.revoke("a", NOW)
    with pytest.raises(FleetError, match="not known"):
        roster.accept("a", token, NOW)
    assert roster.revoked == {}
    roster.invite("a", NOW)


def test_two_processes_see_what_the_other_adds_and_a_third_reads_all(roster):
    other = Roster.open(roster.path)
    token = other.invite("a", NOW)
    roster.refresh()
    roster.accept("a", token, NOW)
    roster.admit("a", "one", NOW)
    other.invite("b", NOW)
    other.revoke("a", NOW)
    roster.begin(["d", "c"], NOW)
    roster.begin(["e"], NOW)
    third = Roster.open(roster.path)
    assert (third.members, set(third.invited), third.revoked) == ({}, {"b"}, {"a": "one"})
    assert third.begun == ("c", "d")


def test_an_entry_for_which_there_is_no_room_is_none(roster, monkeypatch):
    token = roster.invite("a", NOW)
    before, write = roster.path.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:-10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StateError, match="cannot be written"):
            roster.admit("a", "one", NOW)
    assert roster.path.read_bytes() == before
    roster.accept("a", token, NOW)  # it is not used up
    roster.admit("a", "one", NOW)
    assert Roster.open(roster.path).members == {"a": "one"}


def test_a_line_that_cannot_be_read_makes_nothing_count_again(roster):
    roster.invite("a", NOW)
    with roster.path.open("a") as file:
        file.write(json.dumps({"what": "joined", "name": "a", "fingerprint": "x", "at": NOW}) + "\nno json\n")
    for _ in range(3):
        with pytest.raises(StateError, match="cannot be read"):
            roster.refresh()
    assert roster.entries == 2


def test_half_a_line_is_read_when_it_is_whole(roster):
    line = json.dumps({"what": "joined", "name": "a", "fingerprint": "x", "at": NOW}) + "\n"
    roster.path.write_text(line[:20])
    roster.refresh()
    assert roster.members == {}
    roster.path.write_text(line)
    roster.refresh()
    assert roster.members == {"a": "x"}


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"what": "flown", "name": "a"}', '{"what": "joined", "name": "a"}']
)
def test_a_log_that_makes_no_sense_is_refused(roster, line):
    roster.path.write_text(line + "\n")
    with pytest.raises(StateError, match="cannot be read"):
        Roster.open(roster.path)


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "-a", "a" * 64, "desk", "ä"])
def test_names_that_cannot_be_are_refused(roster, name):
    with pytest.raises(FleetError, match="name"):
        roster.invite(name, NOW)


INVITATION = Invitation("f", "id", "a", ("h:1", "i:2"), "pem", "token", NOW, "r.py", ("steps=3",), "|diloco", "hash")


def test_an_invitation_is_read_as_it_was_written_and_nobody_else_may(tmp_path):
    path = tmp_path / "a.invite"
    INVITATION.write(path)
    assert Invitation.read(path.read_text()) == INVITATION
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FleetError, match="such a file"):
        INVITATION.write(path)


CHANGES = [{"federation": "../f"}, {"name": "../../a"}, {"recipe": "/etc/r.py"}, {"recipe": "../r.py"}, {"name": ""}]


@pytest.mark.parametrize(
    "change", [*CHANGES, {"name": 3}, {"desks": "h:1"}, {"expires": None}, {"more": 1}, {"token": None}]
)
def test_what_is_no_invitation_is_refused(change):
    with pytest.raises(FleetError, match="no invitation"):
        Invitation.read(json.dumps({**INVITATION.__dict__, **change}))
    with pytest.raises(FleetError, match="no invitation"):
        Invitation.read(json.dumps(change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "3"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(FleetError, match="no invitation"):
        Invitation.read(text)

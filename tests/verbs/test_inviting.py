"""Who comes to a federation of sites, and who signs that, as whoever keeps the server sees it."""

from __future__ import annotations

import threading

import pytest

from konvoi.cli import main
from konvoi.errors import FleetError, StateError
from konvoi.security.identity import Authority, ask, mark, public_of, sign_as
from konvoi.security.invitation import Invitation
from konvoi.security.roster import DESK, Roster
from konvoi.verbs import approving, federation, inviting
from konvoi.verbs.federation import LOG


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found(**given):
    return federation.found_for_sites("hospitals", at=("far.example",), **given)


def come(folder, name):
    """As the desk does when somebody joins; returns the private key."""
    roster, (key, request) = Roster.open(folder / LOG), ask(name)
    authority = Authority.load(folder / "authority")
    roster.admit(name, "print", 0.0, public_of(authority.sign(request, name)))
    roster.settle(authority.key, 0.0)
    return key


def test_without_founders_the_server_signs_and_the_invitation_says_so():
    folder = found()
    one = Invitation.load(str(inviting.invite(folder, "st-marys", organisation="St Mary's Hospital")))
    assert one.organisation == "St Mary's Hospital"
    told = "\n".join(approving.founders(one))
    assert "whoever keeps the server signs the roster alone, and so can add members" in told
    key = public_of(come(folder, "st-marys"))
    rows = inviting.members(folder).splitlines()
    row = next(line for line in rows if line.startswith("st-marys"))
    for cell in ("St Mary's Hospital", mark(key), "member", DESK):
        assert cell in row
    assert "version 1, founded as " in rows[-1]
    assert inviting.revoke(folder, "st-marys") == ""
    assert Roster.open(folder / LOG).signing.members.sites == {}
    assert found() == folder
    with pytest.raises(FleetError, match="founded by others") as raised:
        found(founders=("a", "b"))
    assert raised.value.expected == DESK


def test_with_founders_they_come_first_and_the_server_can_only_shut_out():
    folder = found(founders=("a", "b", "c"))
    roster = Roster.open(folder / LOG)
    assert roster.signing.needed == 2
    with pytest.raises(FleetError, match="founders come first"):
        inviting.invite(folder, "d")
    keys = {}
    for name in "abc":
        one = Invitation.load(str(inviting.invite(folder, name)))
        assert one.founding == ""
        assert f"{name} is a founder" in "\n".join(approving.founders(one))
        keys[name] = come(folder, name)
    assert inviting.members(folder).count("waits to be approved") == 3
    roster.refresh()
    text = roster.signing.founding()
    for name, key in keys.items():
        roster.sign(name, text, sign_as(key, text.encode()), 0.0)
    one = Invitation.load(str(inviting.invite(folder, "d")))
    assert "2 of a, b, c; whoever keeps the server can add nobody" in "\n".join(approving.founders(one))
    come(folder, "d")
    assert "waits to be approved" in inviting.members(folder)
    assert inviting.revoke(folder, "d") == ""
    told = inviting.revoke(folder, "c")
    assert told.startswith("c is shut out; it leaves the roster when 2 of a, b, c have run: konvoi federation remove-")
    assert "c is shut out" in inviting.members(folder)


def test_a_federation_whose_roster_nobody_signed_is_not_gone_on_with():
    folder = found()
    (folder / LOG).unlink()
    with pytest.raises(StateError, match="signed by nobody") as raised:
        federation.serve(folder, print, None)
    assert "found another" in raised.value.hint


def test_as_many_approve_as_was_said_at_first():
    founders = ("a", "b", "c")
    folder = found(founders=founders, approvals=2)
    assert found(founders=founders, approvals=2) == found(founders=founders) == folder
    with pytest.raises(FleetError, match="as many approve as the founders have signed") as raised:
        found(founders=founders, approvals=3)
    assert raised.value.expected == 2


def test_a_server_that_ended_in_mid_enrolment_signs_for_the_newcomer_when_it_is_back():
    folder, over = found(listen="127.0.0.1:0"), threading.Event()
    inviting.invite(folder, "st-marys")
    Roster.open(folder / LOG).admit("st-marys", "print", 0.0, public_of(ask("st-marys")[0]))
    over.set()
    federation.serve(folder, print, over)
    assert Roster.open(folder / LOG).sites() == ("st-marys",)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--name", "f", "--approvals", "2"), "founders approve newcomers"),
        (("--name", "f", "--founders", "a,b", "--approvals", "3"), "of the founders some approve"),
        (("--name", "f", "--founders", "a,a"), "each its own"),
        (("recipe.py", "--founders", "a,b"), "founders are of federations of sites"),
    ],
)
def test_founders_that_cannot_be_are_said_before_anything_is_made(words, why, capsys):
    assert main(["federation", "start", *words]) == 2
    assert why in capsys.readouterr().err
    assert not federation.ROOT.exists() or not [*federation.ROOT.glob("*/terms.json")]

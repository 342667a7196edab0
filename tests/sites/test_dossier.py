"""The page for a data-protection officer has all that they ask for, and needs nothing from anywhere."""

from __future__ import annotations

import html
import re
import time

import pytest

from konvoi.plan.federated import fedavg
from konvoi.security.identity import mark
from konvoi.security.members import who_adds
from konvoi.sites.dossier import RISKS, page
from konvoi.sites.house import House
from konvoi.sites.protocol import PROTOCOL
from konvoi.verbs import site
from tests.sites.conftest import hold_roster, make_pack

DESKS = ("far.example:7700", "10.0.0.1:7700")
MEMBERS = ("st-marys", "st-johns")


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path / "house")
    hold_roster(made, *MEMBERS)
    (made.folder / "limits.toml").write_text("max_rounds = 77\nhold = 'first'\n")
    return made


@pytest.fixture
def approved(tmp_path, house):
    """With every field that an update can have."""
    path = make_pack(
        tmp_path, fedavg(rounds=12), tell=("loss", "valid"), ranges={"epochs": (1.0, 4.0)}, recipe=b"job = 1\n"
    )
    pack, signer = house.take_in(path)
    house.approve(pack, signer)
    return pack, signer


def shown(house):
    """As a person reads it."""
    return html.unescape(page(house, "st-marys", "hospitals", DESKS))


def test_it_says_what_a_study_is_for_who_signed_it_and_how_long_it_is(house, approved):
    pack, signer = approved
    text = shown(house)
    for told in (pack.purpose, pack.name, pack.hash, signer, "recipe.py", "epochs 1 to 4", "<td>12</td>"):
        assert told in text, told


def test_every_field_that_can_leave_is_in_it_with_its_size_and_meaning(house, approved):
    text = shown(house)
    frames = approved[0].leaves.frames
    assert {frame.kind for frame in frames} >= {*("update", "ask", "get", "error")}
    for frame in (*frames, *PROTOCOL.frames):
        assert f"<td>{frame.kind}</td>" in text
        assert frame.rate in text
        for field in frame.fields:
            row = f"<td>{field.name}</td><td>{field.type}</td>"
            assert row in text, field.name
            assert f"<td>{field.size:,}</td>" in text
            assert field.about in text


def test_it_says_who_sees_what_who_the_members_are_and_where_requests_go(house, approved):
    text = shown(house)
    assert "<td>who sees an update</td><td>whoever keeps the server</td>" in text
    assert "<td>who sees the agreed weights</td><td>all members, and whoever keeps the server</td>" in text
    for name, one in house.members().sites.items():
        row = (name, f"The house of {name}", mark(one.key), "member", "1970-01-01", "desk")
        assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert "Who adds: whoever keeps the server signs the roster alone, and so can add members." in text
    assert f"Version 2 of the roster, founded as {mark(house.members().founding)}." in text
    assert "Requests go to far.example:7700, 10.0.0.1:7700 and nowhere else" in text


def test_every_limit_of_this_site_and_every_risk_that_remains_is_in_it(house, approved):
    text = shown(house)
    for row in house.limits.as_rows(who_adds(house.members()))[1:]:
        assert "".join(f"<td>{one}</td>" for one in row) in text, row
    assert "<td>77</td>" in text
    for risk in ("membership inference", "gradient inversion", "The number of samples", "not recognised", "Review is"):
        assert risk in text
    for paragraph in RISKS.split("\n\n"):
        assert paragraph in text


def test_it_says_who_agreed_and_what_has_left(house, approved):
    pack, _ = approved
    outbox = house.outbox()
    outbox.record("hospitals", "study-1", pack.hash, "update", ["run"], bytes(1234))
    outbox.close()
    site.withdraw(house, "study")
    house.approve(*house.pack("study"))
    text = shown(house)
    assert "<td>study-1</td><td>update</td><td>1</td><td>1,234</td>" in text
    assert text.count(f"<td>approved</td><td>study {pack.hash[:12]}</td>") == 2
    assert f"<td>withdrawn</td><td>study {pack.hash[:12]}</td>" in text
    assert time.strftime("%Y-%m-%d") in text


def test_it_loads_nothing_from_anywhere_and_runs_no_program(house, approved):
    text = page(house, "st-marys", "hospitals", DESKS)
    assert not re.search(
        r"https?://|//[a-z]|url\(|@import|<(script|link|img|iframe|object|base)\b|\bsrc=|\bon\w+=", text
    )


def test_nothing_in_a_pack_can_write_into_it_or_turn_its_text_around(house, tmp_path, monkeypatch):
    bad = "<script>alert(1)</script>\u202e\x1b\u2066"
    monkeypatch.setattr("getpass.getuser", lambda: bad)
    house.approve(*house.take_in(make_pack(tmp_path)))
    text = page(house, bad, bad, (bad,))
    assert "<script" not in text
    assert not any(one in text for one in "\u202e\x1b\u2066")


def test_where_no_pack_is_approved_it_says_so(house):
    assert "So nothing is learnt from this site's data." in shown(house)

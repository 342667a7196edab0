"""A roster that members sign: what is refused, by whoever is shown it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from konvoi.errors import FleetError, StateError
from konvoi.security.identity import ask, public_of, sign_as
from konvoi.security.members import Members, extend, follow, founding, signers, take, voices, who_adds
from konvoi.security.roster import DESK, Roster
from konvoi.security.version import APPROVER, KEEPER, MEMBER, Entry, Version, entry_of

KEYS = {name: ask(name)[0] for name in ("ada", "bob", "cy", "dan", "eve", DESK)}
NOW = 1_000_000.0


def entry(name, role=MEMBER, key=""):
    return Entry(name, f"The house of {name}", public_of(KEYS[key or name]), role, NOW)


def signed(text, *names):
    return Version(text, {name: sign_as(KEYS[name], text.encode()) for name in names})


def first(*names, needed=2):
    return signed(founding("id", needed, [entry(name, APPROVER) for name in names]), *names)


FIRST = first("ada", "bob", "cy")
FOUNDED = follow([FIRST])


def coming(one, *names, of=FOUNDED):
    return signed(of.adding(one), *names)


def going(name, *names, of=FOUNDED):
    return signed(of.without(name), *names)


def test_newcomers_come_and_go_by_the_signatures_of_enough_approvers():
    versions = [FIRST, coming(entry("dan"), "ada", "cy")]
    found = follow(versions)
    assert [*found.sites] == ["ada", "bob", "cy", "dan"]
    assert found.signed["dan"] == ("ada", "cy")
    assert found.signed["ada"] == ("ada", "bob", "cy")
    versions.append(coming(dataclasses.replace(entry("dan"), role=APPROVER), "ada", "bob", of=found))
    versions.append(going("ada", "dan", "bob", of=follow(versions)))
    last = follow(versions)
    assert last.approvers == ("bob", "cy", "dan")
    assert [*last.entries] == ["bob", "cy", "dan"]
    assert last.founding == FIRST.hash == FOUNDED.head
    assert "2 of bob, cy, dan; whoever keeps the server can add nobody" in who_adds(last)
    assert [Version.read(one.line()) for one in versions] == versions


def test_all_founders_sign_the_first_version():
    with pytest.raises(StateError, match="version 0 of the roster is not signed by enough") as raised:
        follow([Version(FIRST.text, {name: FIRST.signatures[name] for name in ("ada", "bob")})])
    assert (raised.value.found, raised.value.expected) == ("2 that count", "3 of ada, bob, cy")


UNDER = [
    ({}, "0 that count"),
    ({"ada": "ada"}, "1 that count"),
    ({"ada": "ada", "bob": "eve"}, "1 that count; bob's is not its own"),
    ({"ada": "ada", "bob": "ada"}, "1 that count; bob's is not its own"),
    ({"ada": "ada", "dan": "dan"}, "1 that count; dan's is none that counts"),
    ({"ada": "ada", DESK: DESK}, "1 that count; desk's is none that counts"),
]


@pytest.mark.parametrize(("by", "why"), UNDER)
def test_an_unsigned_an_under_signed_and_a_forged_version_are_refused(by, why):
    """`dan`: a newcomer who signs for itself; `desk`: whoever keeps the server."""
    text = FOUNDED.adding(entry("dan"))
    version = Version(text, {name: sign_as(KEYS[key], text.encode()) for name, key in by.items()})
    with pytest.raises(StateError, match="version 1 of the roster is not signed by enough of those who may") as raised:
        take(FOUNDED, version)
    assert (raised.value.found, raised.value.expected) == (why, "2 of ada, bob, cy")


@pytest.mark.parametrize("signature", ["", "zz", "00" * 70, "é"])
def test_what_is_no_signature_does_not_count(signature):
    assert signers(FOUNDED, Version(FOUNDED.adding(entry("dan")), {"ada": signature})) == ()


def test_signatures_on_another_text_do_not_count():
    version = coming(entry("dan"), "ada", "bob")
    other = FOUNDED.adding(entry("dan", key="eve"))
    with pytest.raises(StateError, match="not signed by enough"):
        take(FOUNDED, Version(other, version.signatures))


def test_nobodys_signature_counts_for_a_change_of_itself():
    text = FOUNDED.adding(dataclasses.replace(entry("ada"), role=MEMBER))
    assert [*voices(FOUNDED, text)] == ["bob", "cy"]
    with pytest.raises(StateError, match="not signed by enough") as raised:
        take(FOUNDED, going("ada", "ada", "bob"))
    assert raised.value.found == "1 that count; ada's is none that counts"


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (entry("dan", key="ada"), "one key under two names"),
        (entry("dan", APPROVER, key="ada"), "one key under two names"),  # an approver who would be two
        (entry("ada", key="dan"), "adds one who is on it already"),
        (entry("ada", APPROVER), "adds one who is on it already"),
        (entry("dan", KEEPER), "in a role that cannot begin there"),
    ],
)
def test_nobody_is_on_it_twice(one, why):
    with pytest.raises(StateError, match=why):
        take(FOUNDED, coming(one, "ada", "bob", "cy"))


def test_who_was_removed_does_not_come_back_by_name_or_by_key():
    found = follow([FIRST, going("cy", "ada", "bob")])
    for one in (entry("cy"), entry("cy", key="dan"), entry("dan", key="cy")):
        with pytest.raises(StateError, match="brings back one who was removed"):
            take(found, coming(one, "ada", "bob", of=found))


def test_an_approver_who_was_removed_approves_nobody():
    found = follow([FIRST, going("cy", "ada", "bob")])
    with pytest.raises(StateError, match="not signed by enough"):
        take(found, coming(entry("dan"), "ada", "cy", of=found))


def test_so_many_approvers_stay_as_have_to_sign():
    found = follow([FIRST, going("cy", "ada", "bob")])
    with pytest.raises(StateError, match="leaves too few who approve"):
        take(found, going("bob", "ada", of=found))


def changed(text, **other):
    return json.dumps(json.loads(text) | other)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"needed": 1}, "changes what its founders have agreed on"),
        ({"federation": "else"}, "changes what its founders have agreed on"),
        ({"number": 2}, "does not follow the one before"),
        ({"before": "ab" * 32}, "does not follow the one before"),
        ({"remove": ["ada"]}, "changes more than one member"),
        ({"add": []}, "changes more than one member"),
        ({"add": [], "remove": ["zoe"]}, "removes one who is not on it"),
        ({"more": 1}, "no version of a roster"),
        ({"number": True}, "no version of a roster"),
        ({"add": "dan"}, "no version of a roster"),
        ({"add": [{}]}, "no version of a roster"),
        ({"remove": [["ada"]]}, "no version of a roster"),
    ],
)
def test_a_version_that_breaks_a_rule_is_refused_whoever_signs_it(other, why):
    text = changed(FOUNDED.adding(entry("dan")), **other)
    with pytest.raises(StateError, match=why):
        take(FOUNDED, signed(text, "ada", "bob", "cy"))


@pytest.mark.parametrize(
    "other",
    [
        {"name": "../dan"},
        {"name": "Dan"},
        {"organisation": "a\nb"},
        {"organisation": "a" * 201},
        {"organisation": "\u202e"},
        {"key": "AB" * 33},
        {"key": "04" + "ab" * 64},
        {"key": ""},
        {"role": "king"},
        {"since": float("nan")},
        {"since": -1},
        {"since": True},
        {"since": 1e300},
        {"name": 3},
        {"more": 1},
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(other):
    told = dataclasses.asdict(entry("dan"))
    assert entry_of(told) == entry("dan")
    with pytest.raises(StateError, match="no entry of a roster"):
        entry_of(told | other)


@pytest.mark.parametrize("told", ["", "[]", "null", "{", 3, None, {"text": "x"}, {"text": 1, "signatures": {}}, []])
def test_what_is_no_version_is_refused(told):
    with pytest.raises(StateError, match="no version of a roster"):
        Version.read(told)
    with pytest.raises(StateError, match="no version of a roster"):
        take(Members(), Version("[" * 100_000, {}))


def test_a_roster_that_has_gone_back_and_one_that_forks_are_refused():
    held = [FIRST, coming(entry("dan"), "ada", "bob")]
    longer = [*held, going("dan", "ada", "bob", of=follow(held))]
    assert extend(held, longer).number == 2
    assert extend(held, held).number == 1
    with pytest.raises(StateError, match="it has gone back") as raised:
        extend(held, held[:1])
    assert (raised.value.found, raised.value.expected) == ("version 0", "version 1 or later")
    fork = [FIRST, coming(entry("eve"), "ada", "bob")]
    follow(fork)  # sound in itself
    with pytest.raises(StateError, match="another than the one held here") as raised:
        extend(held, fork)
    assert raised.value.found.startswith("version 1 ")
    with pytest.raises(StateError, match="another than the one held here"):
        extend(held, [first("ada", "bob", "cy", needed=1), held[1]])


def test_what_is_signed_anew_is_no_fork():
    """Other signatures on the same text, as ECDSA gives; those that are held count."""
    held = [FIRST]
    assert extend(held, [Version(FIRST.text, {}), coming(entry("dan"), "ada", "bob")]).number == 1


# -- at the server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def roster(tmp_path):
    """Of two founders, both of whom sign."""
    made = Roster.open(tmp_path / "roster.jsonl")
    made.found("id", NOW, ("ada", "bob"), 2)
    return made


def come(roster, *names):
    for name in names:
        roster.accept(name, roster.invite(name, NOW, organisation=f"The house of {name}"), NOW)
        roster.admit(name, f"print of {name}", NOW, public_of(KEYS[name]))


def sign(roster, text, *names):
    for name in names:
        roster.sign(name, text, sign_as(KEYS[name], text.encode()), NOW)


def test_at_the_server_founders_sign_first_and_then_each_newcomer(roster):
    with pytest.raises(FleetError, match="founders come first"):
        roster.invite("dan", NOW)
    come(roster, "ada")
    assert roster.signing.founding() == ""
    come(roster, "bob")
    sign(roster, roster.signing.founding(), "ada")
    assert roster.stands("ada") == "the founders have not signed the roster yet: 1 of 2"
    sign(roster, roster.signing.founding(), "bob")
    assert roster.sites() == ("ada", "bob")
    come(roster, "dan")
    assert roster.sites() == ("ada", "bob")
    text = roster.signing.members.adding(roster.signing.waiting()["dan"])
    sign(roster, text, "bob")
    assert roster.stands("dan") == "dan is not on the roster yet: 1 of 2 have approved it"
    assert Roster.open(roster.path).signing.signed() == {"dan": ["bob"]}  # it outlives the server
    size = roster.path.stat().st_size
    sign(roster, text, "bob")
    assert roster.path.stat().st_size == size
    sign(roster, text, "ada")
    assert roster.sites() == ("ada", "bob", "dan")
    assert roster.stands("dan") == ""
    sign(roster, roster.signing.members.without("dan"), "ada", "bob")
    assert (roster.sites(), [*roster.revoked]) == (("ada", "bob"), ["dan"])
    assert follow(Roster.open(roster.path).signing.versions) == roster.signing.members


def test_the_server_takes_no_signature_that_does_not_count(roster):
    come(roster, "ada", "bob")
    text = roster.signing.founding()
    with pytest.raises(FleetError, match="not what the founders sign"):
        sign(roster, changed(text, needed=1), "ada")
    with pytest.raises(FleetError, match="not the signature of this member's key"):
        roster.sign("ada", text, sign_as(KEYS["bob"], text.encode()), NOW)
    sign(roster, text, "ada", "bob")
    come(roster, "dan")
    text = roster.signing.members.adding(roster.signing.waiting()["dan"])
    with pytest.raises(FleetError, match="signature does not count here"):
        sign(roster, text, "dan")
    with pytest.raises(FleetError, match="nobody has come as that"):
        sign(roster, roster.signing.members.adding(entry("eve")), "ada")
    with pytest.raises(FleetError, match="nobody has come as that"):
        sign(roster, roster.signing.members.adding(dataclasses.replace(entry("dan"), organisation="x")), "ada")
    assert roster.signing.signed() == {}


def test_of_two_that_are_signed_for_at_once_one_comes_first_and_the_other_is_signed_for_again(roster):
    come(roster, "ada", "bob")
    sign(roster, roster.signing.founding(), "ada", "bob")
    come(roster, "cy", "dan")
    cy, dan = (roster.signing.members.adding(one) for one in roster.signing.waiting().values())
    sign(roster, cy, "ada")
    sign(roster, dan, "bob", "ada")
    with pytest.raises(StateError, match="does not follow the one before"):
        sign(roster, cy, "bob")
    assert roster.stands("cy") == "cy is not on the roster yet: 0 of 2 have approved it"
    sign(roster, roster.signing.members.adding(roster.signing.waiting()["cy"]), "ada", "bob")
    assert {*roster.sites()} == {"ada", "bob", "cy", "dan"}


def test_whoever_keeps_a_server_of_founders_can_shut_out_and_add_nobody(roster):
    come(roster, "ada", "bob")
    sign(roster, roster.signing.founding(), "ada", "bob")
    come(roster, "dan")
    roster.settle(KEYS[DESK], NOW)
    assert "dan" not in roster.signing.members.entries
    roster.revoke("bob", NOW)
    roster.settle(KEYS[DESK], NOW)
    assert roster.sites() == ("ada",)
    assert "bob" in roster.signing.members.entries  # on others' rosters it stays, until members have signed


def test_one_key_comes_under_one_name(roster):
    come(roster, "ada")
    roster.invite("bob", NOW)
    with pytest.raises(FleetError, match="this key is a member's already"):
        roster.admit("bob", "print", NOW, public_of(KEYS["ada"]))


def test_a_server_that_signs_alone_signs_what_its_log_says(tmp_path):
    roster = Roster.open(tmp_path / "roster.jsonl")
    roster.found("id", NOW, needed=1, key=public_of(KEYS[DESK]))
    roster.settle(KEYS[DESK], NOW)
    come(roster, "ada", "bob")
    roster.settle(KEYS[DESK], NOW)
    roster.revoke("ada", NOW)
    roster.settle(KEYS[DESK], NOW)
    roster.settle(KEYS[DESK], NOW)
    assert roster.signing.members.number == 3
    assert [*roster.signing.members.sites] == ["bob"]
    assert roster.signing.members.signed["bob"] == (DESK,)
    assert "signs the roster alone" in who_adds(roster.signing.members)


@pytest.mark.parametrize(
    ("founders", "needed", "why"),
    [
        (("ada", "ada"), 1, "each its own"),
        ((DESK, "ada"), 1, "each its own"),
        (("founders", "ada"), 1, "each its own"),
        (("A", "ada"), 1, "each its own"),
        (("ada", "bob"), 3, "of the founders some approve"),
        (("ada", "bob"), 0, "of the founders some approve"),
    ],
)
def test_founders_that_cannot_be_are_refused(tmp_path, founders, needed, why):
    roster = Roster.open(tmp_path / "roster.jsonl")
    with pytest.raises(FleetError, match=why):
        roster.found("id", NOW, founders, needed)
    assert roster.signing is None


def test_an_organisation_has_a_name_that_can_be_printed(roster):
    for organisation in ("a\nb", "a" * 201, "\u202e"):
        with pytest.raises(FleetError, match="no organisation's name"):
            roster.invite("ada", NOW, organisation=organisation)

"""A federation whose founders sign its roster: newcomers wait for them, and a server can add nobody."""

from __future__ import annotations

import dataclasses
import json
import re
import threading

import pytest

from konvoi.cli import main
from konvoi.errors import FleetError, StateError
from konvoi.fleet.wire.dial import Dial, Said
from konvoi.plan.federated import fedavg
from konvoi.security.identity import ask as make_key
from konvoi.security.identity import mark, public_of, sign_as
from konvoi.security.invitation import Invitation
from konvoi.security.members import follow, founding
from konvoi.security.signing import as_told
from konvoi.security.version import APPROVER, MEMBER, Entry, Version
from konvoi.sites import checkup, part
from konvoi.sites.dossier import page
from konvoi.sites.house import House
from konvoi.sites.protocol import Facts, Started
from konvoi.sites.refusing import forbidden
from konvoi.verbs import approving, site
from tests.sites.conftest import Fake, Federation, Puppet, make_pack
from tests.sites.test_wire_watch import said_of


class Founded(Federation):
    """By `a` and `b`, both of whom have to sign."""

    def __init__(self, folder):
        super().__init__(folder, ("a", "b"), 2)

    def enlist(self, name):
        """With a key and a certificate; it waits to be approved."""
        versions = self.hall.roster.signing.versions[:1]
        folder = self.enrol(name)
        pem = self.authority.certificate.decode()
        founding = versions[0].line() if versions else ""
        return House(folder), Invitation("fed", "id", name, self.dial, pem, "", 0.0, "", (), "", "terms", "", founding)

    def found(self):
        """Both founders, who have signed."""
        both = [self.enlist(name) for name in "ab"]
        for house, invitation in both:
            key = mark(Version(self.hall.roster.signing.founding(), {}).hash)
            approving.approve(house, invitation, "founders", key)
        return both

    def admitted(self, name, by):
        found = self.enlist(name)
        for house, invitation in by:
            approving.approve(house, invitation, name, approving.key_of(found[0]))
        return found

    def agent(self, name, pack):
        """Of one that is enlisted."""
        made = self.site(name, pack)
        house, here = made.house, made.here
        made.here = dataclasses.replace(here, founding="" if name in "ab" else here.founding)
        return made if house.folder.name == name else None


@pytest.fixture
def founded(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "Process", Fake)
    made = Founded(tmp_path / "federation")
    yield made
    made.end()


def said(federation, text):
    return any(text in one for one in federation.said)


def lines(found):
    return "\n".join(found)


def test_founders_see_each_others_keys_and_sign_one_text(founded):
    (a, of_a), (b, of_b) = both = [founded.enlist(name) for name in "ab"]
    shown = [lines(approving.waiting(*one)) for one in both]
    head = Version(founded.hall.roster.signing.founding(), {}).hash
    for text in shown:
        assert approving.key_of(a) in text
        assert approving.key_of(b) in text
        assert f"approve-member founders {mark(head)}" in text
        assert "signed by: nobody yet" in text
    with pytest.raises(FleetError, match="a key that was compared") as raised:
        approving.approve(a, of_a, "founders", "")
    assert f"approve-member founders {mark(head)}" in raised.value.hint
    with pytest.raises(FleetError, match="not what the server shows of founders"):
        approving.approve(a, of_a, "founders", approving.key_of(b))
    assert approving.approve(a, of_a, "founders", mark(head)) == "signed by a; 2 of a, b have to"
    assert "signed by: a\n" in lines(approving.waiting(b, of_b))
    assert approving.approve(b, of_b, "founders", mark(head).upper()) == "signed by enough: version 0 of the roster"
    approving._ask(a, of_a)
    assert [*a.members().sites] == [*b.members().sites] == ["a", "b"]
    with pytest.raises(FleetError, match="nothing that founders have to sign"):
        approving.approve(b, of_b, "founders", mark(head))


def test_a_newcomer_waits_until_enough_have_signed_and_then_takes_part(founded, tmp_path):
    both, pack = founded.found(), make_pack(tmp_path, fedavg(rounds=2))
    house, invitation = founded.enlist("c")
    for name in "abc":
        founded.run(founded.agent(name, pack))
    founded.wait(lambda: said(founded, "c: the server says: c is not on the roster yet: 0 of 2 have approved it"))
    key, (a, of_a), (b, of_b) = approving.key_of(house), *both
    waiting = lines(approving.waiting(a, of_a))
    assert "c (no organisation) waits; its key is" in waiting
    assert f"approve-member c {key}" in waiting
    with pytest.raises(FleetError, match="not what the server shows of c"):
        approving.approve(a, of_a, "c", approving.key_of(b))
    assert approving.approve(a, of_a, "c", key) == "signed by a; 2 of a, b have to"
    founded.wait(lambda: said(founded, "c: the server says: c is not on the roster yet: 1 of 2 have approved it"))
    assert approving.approve(b, of_b, "c", key) == "signed by enough: version 1 of the roster"
    with pytest.raises(FleetError, match="c is a member already"):
        approving.approve(b, of_b, "c", key)
    assert lines(approving.waiting(b, of_b)) == "nobody waits"
    founded.submit(pack, first=3, least=3)
    founded.wait(lambda: founded.hall.runs and founded.hosted().is_over)
    assert house.members().signed["c"] == ("a", "b")
    shown = lines(approving.members(house))
    assert "2 of a, b; whoever keeps the server can add nobody" in shown
    assert mark(house.members().founding) in shown
    text = page(house, "c", "fed", ("far:1",))
    assert f"<td>c</td><td></td><td>{key}</td><td>member</td><td>" in text
    assert "<td>a, b</td>" in text
    assert "2 of a, b; whoever keeps the server can add nobody" in text
    assert any("roster    version 1, 3 sites; members come" in line for line in site.review(house, "study"))
    assert any(f"its key is {key}" in line for line in site.status(house, invitation))
    assert any("roster: version 1, 3 sites" in line for line in site.status(house, invitation))
    assert founded.desk.status()["members"]["c"].get("pending") is None


def test_who_waits_is_answered_nothing_and_a_site_that_is_let_in_by_the_server_alone_does_not_train(founded, tmp_path):
    founded.found()
    pack = make_pack(tmp_path)
    puppet = Puppet(founded, "c", pack)
    founded.submit(pack)
    founded.wait(lambda: founded.hall.runs)
    with pytest.raises(Said, match="c is not on the roster yet: 0 of 2"):
        puppet.ask()
    founded.hall.roster.stands = lambda name: ""  # whoever keeps the server lets it in
    for name in "abc":
        founded.run(founded.agent(name, pack))
    founded.wait(lambda: said(founded, "takes no part: this site is not on the roster that it holds"))
    assert "c" not in [one.partition(" c: ")[0] for one in founded.said if "trains for round" in one]


# -- what a server shows, and a site does not take ---------------------------------------------------------------------

KEYS = {name: make_key(name)[0] for name in ("a", "b", "c", "zoe", "desk")}


def entry(name, role=MEMBER):
    return Entry(name, "", public_of(KEYS[name]), role, 0.0)


def signed(text, **by):
    return Version(text, {name: sign_as(KEYS[key], text.encode()) for name, key in by.items()})


FIRST = signed(founding("id", 2, [entry("a", APPROVER), entry("b", APPROVER)]), a="a", b="b")
COMING = signed(follow([FIRST]).adding(entry("c")), a="a", b="b")
ZOE = follow([FIRST]).adding(entry("zoe"))  # whom the server has made up


def told(*versions):
    return as_told(versions)


@pytest.fixture
def house(tmp_path):
    """Of a member who holds the roster of `a` and `b`."""
    made = House(tmp_path / "house")
    made.take_roster(told(FIRST), FIRST.hash)
    return made


def refused(house, shown, founding=FIRST.hash):
    before = house.versions()
    with pytest.raises(StateError, match="the server shows a roster that this site does not take") as raised:
        house.take_roster(shown, founding)
    assert house.versions() == before
    return f"{raised.value.message}; {raised.value.found}; {raised.value.expected}"


@pytest.mark.parametrize(
    ("by", "why"),
    [
        ({}, "0 that count"),
        ({"desk": "desk"}, "0 that count; desk's is none that counts"),
        ({"a": "desk", "b": "desk"}, "0 that count; a's is not its own; b's is not its own"),
        ({"zoe": "zoe"}, "0 that count; zoe's is none that counts"),
        ({"b": "b", "desk": "desk"}, "1 that count; desk's is none that counts"),  # one approver is on its side
    ],
)
def test_a_server_cannot_add_a_member(house, by, why):
    text = refused(house, told(FIRST, signed(ZOE, **by)))
    assert "version 1 of the roster is not signed by enough" in text
    assert text.endswith(f"{why}; 2 of a, b")


def test_a_site_refuses_a_roster_that_has_gone_back_or_forked_and_keeps_its_own(house):
    house.take_roster(told(FIRST, COMING), FIRST.hash)
    assert "it has gone back" in refused(house, told(FIRST))
    assert "another than the one held here" in refused(house, told(FIRST, signed(ZOE, a="a", b="b")))
    assert [*House(house.folder).members().sites] == ["a", "b", "c"]


def test_signatures_that_are_held_are_not_taken_away_by_what_is_shown(house):
    house.take_roster(told(Version(FIRST.text, {}), COMING), FIRST.hash)
    assert house.versions() == [FIRST, COMING]
    assert house.members().signed["a"] == ("a", "b")


@pytest.mark.parametrize(
    "shown", [None, [], {}, [3], [{"text": "x", "signatures": {}}], "x", [{"text": "\ud800", "signatures": {}}]]
)
def test_what_is_no_roster_is_refused(house, shown):
    refused(house, shown)


def test_a_site_takes_no_founders_but_those_of_its_invitation(tmp_path):
    new, other = House(tmp_path / "new"), founding("id", 1, [entry("zoe", APPROVER)])
    assert "it is another federation's" in refused(new, told(signed(other, zoe="zoe")))
    assert new.take_roster(told(FIRST, COMING), FIRST.hash).number == 1


def test_a_founder_takes_no_roster_that_its_people_have_not_signed(tmp_path):
    """They may have been shown another."""
    new = House(tmp_path / "new")
    assert "what is signed here first" in refused(new, told(FIRST), "")
    new.note_founding(ZOE)
    assert "it is another federation's" in refused(new, told(FIRST), "")
    with pytest.raises(StateError, match="other founders were signed for here"):
        new.note_founding(FIRST.text)
    new = House(tmp_path / "other")
    new.note_founding(FIRST.text)
    assert [*new.take_roster(told(FIRST), "").sites] == ["a", "b"]


def test_whoever_is_removed_counts_in_no_smallest_cohort(house, tmp_path):
    (house.folder / "limits.toml").write_text("min_cohort = 3")
    pack, signer = house.take_in(make_pack(tmp_path))
    house.approve(pack, signer)
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    facts = Facts(run, "runs", 1, 3, "ab" * 32, 32, ("a", "b", "c"), True, "")
    house.take_roster(told(FIRST, COMING), FIRST.hash)
    assert forbidden(facts, run, pack, signer, house, "a") == []
    going = signed(house.members().without("c"), a="a", b="b")
    house.take_roster(told(FIRST, COMING, going), FIRST.hash)
    few = "a round of 2 members; this site allows 3 or more"
    assert forbidden(facts, run, pack, signer, house, "a") == [few]
    none = "this site is not on the roster that it holds: it has to be approved first"
    assert forbidden(facts, run, pack, signer, house, "c") == [none, few]


# -- what approvers do -------------------------------------------------------------------------------------------------


def test_to_ask_and_to_sign_say_what_the_page_says_and_no_more(founded, monkeypatch):
    sent, post = [], Dial.post
    monkeypatch.setattr(Dial, "post", lambda *given: (sent.append(given[1:3]), post(*given))[1])
    both = founded.found()
    founded.admitted("c", both)
    approving.remove(*both[0], "c")
    said = {path: json.loads(body) for path, body in sent}
    assert {*said} == {"/enrol", "/roster", "/sign"}
    assert {*said["/roster"]} == said_of("/roster") == set()
    assert {*said["/sign"]} == said_of("/sign") == {"text", "signature"}
    assert json.loads(said["/sign"]["text"])["remove"] == ["c"]


def test_who_is_no_approver_signs_nothing_and_an_approver_does_not_sign_for_itself(founded):
    both = founded.found()
    c = founded.admitted("c", both)
    d, _ = founded.enlist("d")
    with pytest.raises(FleetError, match="this site is not among those who approve that") as raised:
        approving.approve(*c, "d", approving.key_of(d))
    assert raised.value.expected == "a, b"
    with pytest.raises(FleetError, match="not among those who approve"):
        approving.remove(*c, "a")
    a, of_a = both[0]
    with pytest.raises(FleetError, match="e does not wait for approval") as raised:
        approving.approve(a, of_a, "e", "")
    assert raised.value.found == "waiting: d"
    with pytest.raises(StateError, match="removes one who is not on it"):
        approving.remove(a, of_a, "e")
    with pytest.raises(StateError, match="leaves too few who approve"):
        approving.remove(a, of_a, "b")


def test_approvers_make_another_one_and_remove_a_member(founded):
    both = founded.found()
    c, of_c = founded.admitted("c", both)
    key = approving.key_of(c)
    said = [approving.approve(*one, "c", key, approver=True) for one in both]
    assert said[-1] == "signed by enough: version 2 of the roster"
    a, of_a = both[0]
    assert approving.remove(a, of_a, "b") == "signed by a; 2 of a, c have to"
    assert "b is to go or to change: signed by a" in lines(approving.waiting(c, of_c))
    assert approving.remove(c, of_c, "b") == "signed by enough: version 3 of the roster"
    assert c.members().approvers == ("a", "c")
    assert c.members().entries["c"].role == APPROVER
    with pytest.raises(Said, match="no member's any more"):
        approving._ask(*both[1])


def test_an_invitation_with_a_roster_that_nobody_signed_is_refused_before_anything_is_asked(founded):
    both = founded.found()
    _, invitation = founded.enlist("c")
    version = Version.read(invitation.founding)
    assert mark(version.hash) in lines(approving.founders(invitation))
    for one in "ab":
        assert approving.key_of(House(founded.folder / "members" / one)) in lines(approving.founders(invitation))
    bad = dataclasses.replace(invitation, founding=Version(version.text, {}).line())
    with pytest.raises(StateError, match="version 0 of the roster is not signed by enough"):
        lines(approving.founders(bad))
    (found,) = [one for one in checkup.check(bad, founded.folder, None, None) if one.what == "roster"]
    assert not found.well
    (found,) = [one for one in checkup.check(invitation, founded.folder, None, None) if one.what == "roster"]
    assert found.well
    assert approving.key_of(both[0][0]) in found.found
    elsewhere = dataclasses.replace(invitation, federation_id="other")
    with pytest.raises(StateError, match="another federation's"):
        lines(approving.founders(elsewhere))


def test_a_site_whose_roster_is_another_stops_and_says_why(founded, tmp_path):
    founded.found()
    agent = founded.agent("a", make_pack(tmp_path))
    shown = founded.hall.roster.signing
    invented = Version(shown.members.adding(entry("zoe")), {})
    founded.hall._roster = lambda: told(*shown.versions, invented)
    raised = []

    def run():
        try:
            agent.run(threading.Event())
        except StateError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert "does not take: version 1 of the roster is not signed by enough" in raised[0].message


def test_it_is_done_on_the_command_line(founded, tmp_path, monkeypatch, capsys):
    (tmp_path / "here" / "memberships").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "memberships" / "fed").symlink_to(founded.folder / "members")

    def konvoi(name, *words):
        code = main(["federation", *words, "--federation", f"fed/{name}"])
        said = capsys.readouterr()
        return code, said.out + said.err

    def enlist(name):
        house, invitation = founded.enlist(name)
        (house.folder / "invitation.json").write_text(invitation.as_text())
        return approving.key_of(house)

    keys = [enlist(name) for name in "ab"]
    for name in "ab":
        _, text = konvoi(name, "approve-member")
        assert all(key in text for key in keys)
        code, text = konvoi(name, "approve-member", "founders", re.search(r"founders ([0-9a-f:]+)", text)[1])
        assert code == 0, text
    key = enlist("c")
    code, text = konvoi("a", "approve-member", "c", keys[1])
    assert (code, "not what the server shows of c" in text) == (2, True)
    for name in "ab":
        assert konvoi(name, "approve-member", "c", key)[0] == 0
    _, text = konvoi("b", "members")
    assert re.search(rf"c +{key} +member .*a, b", text), text
    for words in (("status",), ("limits",)):
        assert "2 of a, b; whoever keeps the server can add nobody" in konvoi("b", *words)[1]
    assert konvoi("a", "remove-member", "c")[1] == "signed by a; 2 of a, b have to\n"

"""Nothing happens at a site that its people have not agreed to, and nothing leaves while they have said stop."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from konvoi.errors import ConfigError, StateError
from konvoi.plan.federated import fedavg
from konvoi.security import outbox
from konvoi.security.members import who_adds
from konvoi.sites import house as houses
from konvoi.sites.dossier import RISKS
from konvoi.sites.house import House
from konvoi.sites.limits import TEXT, Limits
from konvoi.sites.protocol import Started
from konvoi.state.journal import write
from konvoi.verbs.site import review
from tests.sites.conftest import hold_roster, make_pack


def sent(site, kind="update"):
    return [one for one in outbox.read(site.house.folder / "outbox.jsonl") if one.kind == kind]


def test_a_run_waits_for_a_person_and_goes_on_when_they_agree(federation, tmp_path):
    pack = make_pack(tmp_path)
    federation.run(federation.site("a", pack))
    b = federation.site("b")
    federation.run(b)
    federation.submit(pack)
    federation.wait(lambda: any("b: study-1 waits for a person here" in one for one in federation.said))
    assert federation.hosted().status == "waits"
    assert not sent(b)
    b.house.approve(*b.house.pack(""))  # the pack was fetched, to be looked at
    federation.wait(lambda: federation.hosted().is_over)


def test_what_was_taken_back_is_not_trained(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=200))
    sites = [federation.site(name, pack) for name in "abc"]
    for site in sites:
        federation.run(site)
    federation.submit(pack, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 2)
    sites[0].house.withdraw(sites[0].house.pack("study")[0])
    federation.wait(lambda: any("not approved here any more" in one for one in federation.said))
    before = len(sent(sites[0]))
    then = federation.hosted().state.round
    federation.wait(lambda: federation.hosted().state.round > then + 2)
    assert len(sent(sites[0])) == before
    assert federation.hosted().refused["a"] == "its own limits forbid it"


def test_nothing_leaves_while_a_site_is_paused(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=500))
    sites = [federation.site(name, pack) for name in "abc"]
    for site in sites:
        federation.run(site)
    federation.submit(pack, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 1)
    sites[0].house.pause()
    time.sleep(0.3)
    lines = (sites[0].house.folder / "outbox.jsonl").read_text()
    time.sleep(1.0)
    assert (sites[0].house.folder / "outbox.jsonl").read_text() == lines
    sites[0].house.resume()
    number = len(sent(sites[0]))
    federation.wait(lambda: len(sent(sites[0])) > number)


@pytest.mark.parametrize(
    ("limits", "plan", "why"),
    [
        ("max_epochs = 1.0", fedavg(epochs=5), "5 epochs a round; this site allows 1"),
        ("max_steps = 3", fedavg(steps=5), "5 steps a round; this site allows 3"),
        ("max_rounds = 2", fedavg(rounds=3), "3 rounds; this site allows 2"),
        ("signers = ['00']", fedavg(rounds=3), "who is not among this site's signers"),
    ],
)
def test_limits_win_over_what_is_approved(federation, tmp_path, limits, plan, why):
    pack = make_pack(tmp_path, plan)
    site = federation.site("a")
    (site.house.folder / "limits.toml").write_text(limits)
    with pytest.raises(StateError, match="limits forbid that") as raised:
        site.house.approve(*site.house.take_in(pack))
    assert why in raised.value.found
    (site.house.folder / "limits.toml").unlink()
    site.house.approve(*site.house.take_in(pack))
    (site.house.folder / "limits.toml").write_text(limits)  # later: it is read before every round
    federation.run(site)
    federation.run(federation.site("b", pack))
    federation.submit(pack)
    federation.wait(
        lambda: any(f"a: study-1: this site takes no part: {why[:20]}" in one or why in one for one in federation.said)
    )
    assert not sent(site)


def test_a_cohort_that_is_too_small_for_a_site_does_not_get_its_update(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=2))
    site = federation.site("a", pack, limits="min_cohort = 3")
    federation.run(site)
    federation.run(federation.site("b", pack))
    federation.submit(pack, first=2, least=1)
    federation.wait(lambda: any("a round of 2 members; this site allows 3 or more" in one for one in federation.said))
    assert not sent(site)


def test_no_more_bytes_leave_in_a_day_than_a_site_allows(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=1000))
    site = federation.site("a", pack, limits="max_bytes_per_day = 3000")
    for one in (site, federation.site("b", pack), federation.site("c", pack)):
        federation.run(one)
    federation.submit(pack, first=3)
    federation.wait(lambda: any("too much has left today" in one for one in federation.said))
    total = sum(one.size for one in outbox.read(site.house.folder / "outbox.jsonl"))
    assert 2500 < total <= 3000
    assert federation.hosted().state.round > 1


def test_a_server_cannot_ask_for_more_than_the_pack_allows(federation, tmp_path):
    """Its own program would refuse; so the run is put there by hand."""
    pack = make_pack(tmp_path, ranges={"epochs": (1.0, 2.0)})
    with pytest.raises(StateError, match="does not allow these settings"):
        federation.submit(pack, settings={"epochs": 50.0})
    site = federation.site("a", pack)
    federation.run(site)
    folder = federation.folder / "runs" / "evil-1"
    folder.mkdir(parents=True)
    (folder / "pack").write_bytes(pack.read_bytes())
    hash = site.house.pack("study")[0].hash
    run = Started("id", "evil-1", hash, {"epochs": 50.0}, 1, 1)
    write(folder / "run.json", json.dumps(vars(run)).encode())  # whole, as the server looks for it all the time
    federation.wait(lambda: any("epochs=50, allowed 1 to 2" in one for one in federation.said))
    assert not sent(site)


def test_an_approval_is_for_the_rounds_of_a_pack_and_another_run_waits_for_another(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=2))
    sites = [federation.site(name, pack) for name in "ab"]
    for site in sites:
        federation.run(site)
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    federation.submit(pack)
    federation.wait(lambda: any("a: study-2 waits for a person here, as the rounds" in one for one in federation.said))
    assert federation.hosted(1).status == "waits"
    assert len(sent(sites[0])) == 2
    assert any(
        "agreed to 2 rounds of all its runs together: 2 of study-1" in one for one in review(sites[0].house, "study")
    )
    for site in sites:
        site.house.approve(*site.house.pack("study"))
    federation.wait(lambda: federation.hosted(1).is_over)


def test_a_site_may_allow_more_rounds_of_a_pack(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=2))
    for name in "ab":
        federation.run(federation.site(name, pack, limits="max_rounds_per_pack = 4"))
    federation.submit(pack)
    federation.submit(pack)
    federation.wait(lambda: len(federation.hall.runs) == 2 and all(r.is_over for r in federation.hall.runs.values()))


def test_to_agree_again_agrees_to_more_only_where_there_is_none_left(tmp_path):
    house = House(tmp_path / "house")
    pack, signer = house.take_in(make_pack(tmp_path, ranges={"rounds": (1.0, 5.0)}))
    assert house.rounds(pack) == 0
    house.approve(pack, signer)
    house.approve(pack, signer)
    assert house.rounds(pack) == 5  # the longest run that it allows
    assert house.join(pack, "aa", "study-1", 3)
    assert house.join(pack, "aa", "study-1", 3)  # the same
    assert not house.join(pack, "bb", "study-2", 3)
    assert house.join(pack, "cc", "study-3", 2)
    house.withdraw(pack)
    house.approve(pack, signer)
    assert house.rounds(pack) == 5  # as it was
    house.approve(pack, signer)
    assert house.rounds(pack) == 10
    assert House(tmp_path / "house").join(pack, "bb", "study-2", 3)


def test_an_update_is_held_until_a_person_lets_it_go(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=2, deadline_s=60.0))
    site = federation.site("a", pack, limits='hold = "first"')
    federation.run(site)
    federation.run(federation.site("b", pack))
    federation.submit(pack)
    federation.wait(site.house.held)
    time.sleep(0.5)
    assert not sent(site)
    (frame,) = site.house.held()
    kind, found = site.house.pack("study")[0].leaves.read(frame.read_bytes())
    assert kind == "update"
    assert np.array_equal(found["move bias"], [-1, -1])
    houses.release(frame)
    federation.wait(lambda: federation.hosted().is_over)  # the second goes by itself
    assert not site.house.held()


def test_a_command_may_look_at_what_leaves(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=2))
    site = federation.site("a", pack, limits='hold = "each"\nhold_command = "false"')
    federation.run(site)
    federation.run(federation.site("b", pack))
    federation.submit(pack)
    federation.wait(
        lambda: any("the command that looks at updates does not let it go" in one for one in federation.said)
    )
    assert not sent(site)
    (site.house.folder / "limits.toml").write_text('hold = "each"\nhold_command = "test -s"')
    federation.wait(lambda: federation.hosted().is_over)


def test_limits_that_are_misspelt_are_none(tmp_path):
    (tmp_path / "limits.toml").write_text("max_epoch = 3")
    with pytest.raises(ConfigError, match="there is no such limit") as raised:
        Limits.read(tmp_path / "limits.toml")
    assert raised.value.hint == "did you mean max_epochs?"
    (tmp_path / "limits.toml").write_text("max_epochs = 'many'")
    with pytest.raises(ConfigError, match="max_epochs is not as it should be"):
        Limits.read(tmp_path / "limits.toml")
    (tmp_path / "limits.toml").write_text("hold = 'sometimes'")
    with pytest.raises(ConfigError, match="nothing, the first update"):
        Limits.read(tmp_path / "limits.toml")


def test_a_site_is_told_where_it_takes_the_servers_word(tmp_path):
    rows = " ".join(cell for row in Limits().as_rows(who_adds(hold_roster(House(tmp_path), "a"))) for cell in row)
    for text in (rows, as_written(), RISKS):
        assert "whoever keeps the server" in " ".join(text.split())
        assert "add members" in " ".join(text.split()) or "invents members" in text
        assert "the roster that this site holds" in " ".join(text.split())


def as_written():
    """Of `limits.toml`, as it is written for a new member; without what makes lines comments."""
    return TEXT.replace("\n# ", " ")

"""Updates that wait for a person, and people who change their mind meanwhile."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from konvoi.plan.federated import fedavg
from konvoi.security import outbox
from konvoi.security.pack import read
from konvoi.sites import hall, hosted, part
from konvoi.sites import house as houses
from konvoi.sites.gate import Gate, Kept
from konvoi.sites.house import House
from konvoi.sites.protocol import fields
from tests.sites.conftest import NUMBERS, Fake, make_pack


def said(federation, text):
    return any(text in one for one in federation.said)


def updates(site):
    return [one for one in outbox.read(site.house.folder / "outbox.jsonl") if one.kind == "update"]


class Asked(Fake):
    """Says that it trains, and waits until it may go on or is ended."""

    begun, may_go_on = threading.Event(), threading.Event()
    ended = 0

    def train(self, order, *, most_s, is_over):
        Asked.begun.set()
        while not Asked.may_go_on.wait(0.05):
            if self.told.site == "a" and is_over():
                Asked.ended += 1
                return None
        return super().train(order, most_s=most_s, is_over=is_over)


@pytest.fixture
def asked(federation, monkeypatch):
    monkeypatch.setattr(part, "Process", Asked)
    Asked.begun.clear()
    Asked.may_go_on.clear()
    Asked.ended = 0
    yield Asked
    Asked.may_go_on.set()


def test_what_is_taken_back_while_it_trains_is_ended(federation, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(hall, "HELD_S", 1.0)
    pack = make_pack(tmp_path)
    sites = [federation.site(name, pack) for name in "ab"]
    for site in sites:
        federation.run(site)
    federation.submit(pack)
    federation.wait(asked.begun.is_set)
    sites[0].house.withdraw(read(pack)[0])
    federation.wait(lambda: asked.ended)
    federation.wait(lambda: said(federation, "a: study-1: this site takes no part: it is not approved here any more"))
    assert not updates(sites[0])


def test_what_is_taken_back_in_the_last_moment_does_not_leave(federation, tmp_path, monkeypatch):
    pack = make_pack(tmp_path)
    sites = {name: federation.site(name, pack) for name in "ab"}

    class Late(Fake):
        def train(self, order, **options):
            if self.told.site == "a":
                sites["a"].house.withdraw(read(pack)[0])
            return super().train(order, **options)

    monkeypatch.setattr(part, "Process", Late)
    for site in sites.values():
        federation.run(site)
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: study-1: this site takes no part: it is not approved here any more"))
    assert not updates(sites["a"])


def test_what_is_taken_back_while_it_is_held_does_not_leave(federation, tmp_path):
    pack = make_pack(tmp_path)
    site = federation.site("a", pack, limits='hold = "each"')
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(site.house.held)
    site.house.withdraw(read(pack)[0])
    federation.wait(lambda: not site.house.held())
    federation.wait(lambda: said(federation, "a: study-1: this site takes no part: it is not approved here any more"))
    assert not updates(site)


def three(federation, pack):
    """Of which the first wants a person to look."""
    site = federation.site("a", pack, limits='hold = "each"')
    for one in (site, federation.site("b", pack), federation.site("c", pack)):
        federation.run(one)
    federation.submit(pack, first=3)
    federation.wait(site.house.held)
    return site


def test_a_site_whose_person_takes_their_time_counts(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "BEAT_S", 0.5)
    monkeypatch.setattr(hosted, "AWAY_S", 3.0)
    site = three(federation, make_pack(tmp_path, fedavg(rounds=1, deadline_s=0.5, patience_s=60.0)))
    federation.wait(lambda: federation.hosted().doing_of("a").startswith("waits for its update to be let go"))
    time.sleep(4.0)  # longer than the deadline, and than a site may be silent
    assert not federation.hosted().is_over
    houses.release(*site.house.held())
    federation.wait(lambda: federation.hosted().is_over)
    assert len(federation.hosted().history()[0]["updates"]) == 3


def test_an_update_is_held_no_longer_than_its_round_lasts(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "BEAT_S", 0.3)
    site = three(federation, make_pack(tmp_path, fedavg(rounds=2, deadline_s=2.0, patience_s=4.0)))
    (first,) = site.house.held()
    federation.wait(lambda: said(federation, "nobody let its update for round 1 go before that was decided"))
    assert len(federation.hosted().history()[0]["updates"]) == 2
    federation.wait(lambda: site.house.held() and site.house.held() != [first])
    assert "limits" not in federation.hosted().refused.get("a", "")
    houses.release(*site.house.held())
    federation.wait(lambda: federation.hosted().is_over)
    assert len(federation.hosted().history()[1]["updates"]) == 3


class Deaf:
    def post(self, path, data):
        return 200, b"{}"


def test_the_first_update_of_a_run_is_held_whatever_a_server_calls_that_run(tmp_path):
    house = House(tmp_path / "house")
    pack, signer = house.take_in(make_pack(tmp_path))
    house.approve(pack, signer)
    gate = Gate(house, Deaf(), "test")

    def send(run, command):
        (house.folder / "limits.toml").write_text(f'hold = "first"\nhold_command = "{command}"')
        values = {"run": run * 32, "round": 1, "base": bytes(32), "samples": 1, "loss": 0.0}
        values |= fields(pack.leaves, np.zeros(NUMBERS, np.float32), "move")
        gate.send(pack.leaves, "update", values, run="study-1", pack=pack.hash)

    with pytest.raises(Kept, match="does not let it go"):
        send(b"\1", "false")
    send(b"\1", "true")
    send(b"\1", "false")  # its first was let go
    with pytest.raises(Kept, match="does not let it go"):
        send(b"\2", "false")
    with pytest.raises(Kept, match="cannot be run"):
        send(b"\2", "/nope")
    assert not house.held()


def test_a_command_that_does_not_end_is_ended_when_a_site_is_paused(tmp_path):
    house = House(tmp_path / "house")
    pack, signer = house.take_in(make_pack(tmp_path))
    house.approve(pack, signer)
    (house.folder / "limits.toml").write_text('hold = "each"\nhold_command = "tail -f"')
    threading.Timer(0.5, house.pause).start()
    values = {"run": bytes(32), "round": 1, "base": bytes(32), "samples": 1, "loss": 0.0}
    values |= fields(pack.leaves, np.zeros(NUMBERS, np.float32), "move")
    with pytest.raises(Kept, match="paused"):
        Gate(house, Deaf(), "test").send(pack.leaves, "update", values, pack=pack.hash)

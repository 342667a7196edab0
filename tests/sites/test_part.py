"""What a site's part in a run does where something fails, what it refuses, and what it keeps until it has counted."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from konvoi import lines
from konvoi.errors import KonvoiError, StateError
from konvoi.fleet.wire.dial import Inspected, Said, Unreached
from konvoi.plan.federated import fedavg, fedbuff
from konvoi.security import outbox
from konvoi.security.leaving import Listed
from konvoi.sites import hall, part
from konvoi.sites.gate import Gate
from konvoi.sites.house import House
from konvoi.sites.orders import Result
from konvoi.sites.protocol import DATA, PROTOCOL, TRAINING, Facts, Started, hash_of
from konvoi.sites.refusing import forbidden
from konvoi.sites.site import Here
from konvoi.sites.tentative import Tentative
from tests.sites.conftest import Fake, Puppet, hold_roster, make_pack

ONE, TWO, THREE = (letter * 64 for letter in "123")


def said(federation, text):
    return any(text in one for one in federation.said)


def facts(base=ONE, *, round=1, counted="", wanted=True, run=None, rounds=3, cohort=("a", "b")):
    run = run or Started("id", "study-1", ONE, {}, 1, 1)
    return Facts(run, "runs", round, rounds, base, 32, cohort, wanted, counted)


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A part that nobody runs, and what it says."""
    house, told = House(tmp_path / "house"), []
    pack, signer = house.take_in(make_pack(tmp_path))
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    here, gate = Here("a", "test", "id", b"", tmp_path), Gate(house, Silent(), "test")
    return part.Part(run, pack, signer, here, house, gate, told.append), told


class Silent:
    def post(self, path, data):
        raise Unreached("nobody answers")


@pytest.mark.parametrize(
    ("error", "tells", "grows"),
    [
        (Unreached("x"), None, False),
        (Inspected("x"), None, False),
        (Said("no"), "study-1: the server says: no", False),
        (KonvoiError("no", found=3), "study-1: no (3)", True),
        (OSError("disk full"), "study-1: no update: training failed; why stands in", True),
        (part.NoUpdate(4), "study-1: no update: training was ended from outside", True),
    ],
)
def test_whatever_fails_is_told_by_its_name_and_tried_again_more_rarely(alone, monkeypatch, error, tells, grows):
    one, told = alone

    def fail():
        raise error

    monkeypatch.setattr(one, "_turn", fail)
    waits = [one._try() for _ in range(12)]
    assert waits[0] == part.AGAIN_S
    assert waits[-1] == (part.RARELY_S if grows else part.AGAIN_S)
    assert all(line.startswith(tells) for line in told) if tells else not told
    if isinstance(error, OSError):
        assert "disk full" in (one.folder / "log.txt").read_text()


def test_what_went_wrong_while_the_server_was_away_is_told_as_a_number_of_times(alone, monkeypatch):
    one, _ = alone
    sent, is_there = [], []

    def post(path, data):
        if not is_there:
            raise Unreached("nobody answers")
        sent.append(data)
        return 200, b"{}"

    def fail():
        raise part.NoUpdate(one._code)

    monkeypatch.setattr(one.gate.dial, "post", post)
    monkeypatch.setattr(one, "_turn", fail)
    for code, there in ((TRAINING, False), (TRAINING, False), (DATA, False), (TRAINING, True), (TRAINING, True)):
        one._code, is_there[:] = code, [True] * there
        one._try()
    found = [PROTOCOL.read(data)[1] for data in sent]
    assert [(int(told["code"]), int(told["count"])) for told in found] == [(TRAINING, 3), (TRAINING, 1)]
    one._untold[DATA] = 10**12
    one._code = DATA
    one._try()
    assert {len(data) for data in sent} == {PROTOCOL.frame("error").size}  # however often
    assert int(PROTOCOL.read(sent[-1])[1]["count"]) == 10**12 + 1


def test_the_server_says_how_often(federation, tmp_path):
    pack = make_pack(tmp_path)
    puppet = Puppet(federation, "a", pack)
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs)
    run = bytes.fromhex(federation.hosted().run.hash)
    puppet.post(PROTOCOL.build("error", {"run": run, "code": TRAINING, "count": 3}))
    assert said(federation, "nothing of a in round 1: training failed (3 times)")


def test_a_pack_that_lists_other_words_than_are_said_is_not_agreed_to(tmp_path):
    pack, signer = House(tmp_path / "house").take_in(make_pack(tmp_path))
    frames = tuple(replace(one, fields=one.fields[:-1]) if one.kind == "error" else one for one in pack.leaves.frames)
    with pytest.raises(StateError, match="another version of konvoi"):
        House(tmp_path / "house").approve(replace(pack, leaves=Listed(frames)), signer)


def test_a_part_outlives_what_it_did_not_foresee(federation, tmp_path, monkeypatch):
    number = iter(range(10))

    class Fails(Fake):
        def train(self, order, **options):
            if self.told.site == "a" and next(number) < 2:
                raise OSError("no room")
            return super().train(order, **options)

    monkeypatch.setattr(part, "Process", Fails)
    pack = make_pack(tmp_path)
    site = federation.site("a", pack)
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(lambda: site.parts)
    first = next(iter(site.parts.values()))
    federation.wait(lambda: federation.hosted().is_over)
    assert next(iter(site.parts.values())) is first
    assert said(federation, "nothing of a in round 1: training failed")
    assert (first.folder / "log.txt").read_text().count("no room") >= 2


def test_a_run_that_cannot_be_begun_does_not_end_the_site(federation, tmp_path):
    pack = make_pack(tmp_path)
    site = federation.site("a", pack)
    for path in (site.house.folder / "packs").glob("*.pack"):
        path.write_bytes(b"damaged")
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: study-1 cannot be begun (StateError('this is no pack')"))
    assert federation.sites[0][2].is_alive()
    next((site.house.folder / "packs").glob("*.pack")).write_bytes(pack.read_bytes())
    federation.wait(lambda: federation.hosted().is_over)


def test_a_command_that_is_not_there_is_not_tried_without_end(federation, tmp_path):
    pack = make_pack(tmp_path)
    site = federation.site("a", pack, limits='hold = "each"\nhold_command = "/nope"')
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: study-1: this site takes no part: the command that looks at updates"))
    time.sleep(3.0)
    assert next(iter(site.parts.values())).is_alive()
    assert len([*outbox.read(site.house.folder / "outbox.jsonl")]) < 20


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (Result(samples=1, valid_loss=float("nan"), valid_samples=1), "what it learnt is not finite"),
        (Result(samples=1, loss=float("inf"), valid_samples=1), "what it learnt is not finite"),
        (Result(code=77), "training failed"),
        (Result(code="1"), "training failed"),
    ],
)
def test_what_cannot_be_sent_is_told_as_a_code(federation, tmp_path, monkeypatch, result, why):
    class Odd(Fake):
        def train(self, order, **options):
            found = super().train(order, **options)
            return result if self.told.site == "a" else found

    monkeypatch.setattr(part, "Process", Odd)
    pack = make_pack(tmp_path, tell=("loss", "valid"))
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: said(federation, f"nothing of a in round 1: {why}"))
    assert said(federation, f"a: study-1: no update: {why}")
    assert not said(federation, "a: study-1: the server says")


def test_what_is_wrong_here_is_not_told_as_the_servers_word(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(hall, "HELD_S", 1.0)
    pack = make_pack(tmp_path, fedavg(rounds=400))
    site = federation.site("a", pack)
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 1)
    (site.house.folder / "limits.toml").write_text("max_epoch = 3")
    federation.wait(lambda: said(federation, "a: study-1: there is no such limit"))
    federation.wait(lambda: said(federation, "a: there is no such limit"))
    assert not said(federation, "the server says: there is no such limit")


def test_a_site_whose_disk_is_full_sends_nothing_and_goes_on_when_it_is_not(federation, tmp_path, monkeypatch):
    is_full = threading.Event()
    is_full.set()

    def add(file, line):
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        lines.add(file, line)

    monkeypatch.setattr(outbox, "lines", SimpleNamespace(add=add, opened=lines.opened, since=lines.since))
    pack = make_pack(tmp_path)
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: nothing leaves: the outbox cannot be written"))
    assert not federation.hall.seen
    is_full.clear()
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "is_enough"), [("a", False), ("abcd", False), ("abcde", True)])
def test_a_buffer_is_no_larger_a_cohort_than_there_are_members(tmp_path, members, is_enough):
    house = House(tmp_path / "house")
    (house.folder / "limits.toml").write_text("min_cohort = 5")
    hold_roster(house, *members)
    pack, signer = house.take_in(make_pack(tmp_path, fedbuff(buffer=10, rounds=3)))
    house.approve(pack, signer)
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    found = forbidden(facts(run=run), run, pack, signer, house, "a")
    assert found == ([] if is_enough else [f"a round of {len(members)} members; this site allows 5 or more"])


def test_nothing_is_trained_behind_the_last_round(tmp_path):
    house = House(tmp_path / "house")
    hold_roster(house, *"ab")
    pack, signer = house.take_in(make_pack(tmp_path))
    house.approve(pack, signer)
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    assert not forbidden(facts(run=run, round=3), run, pack, signer, house, "a")
    assert not forbidden(facts(TWO, run=run, round=4, wanted=False), run, pack, signer, house, "a")
    assert forbidden(facts(TWO, run=run, round=4), run, pack, signer, house, "a") == ["round 4 of 3; the pack has 3"]


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """Something of its own, and an update on the way whose round is 1."""
    one = Tentative(tmp_path)
    one.own.write_bytes(b"old")
    own = one.attempt() / "own"
    own.write_bytes(b"new")
    one.keep(own, 1, ONE, b"frame")
    return one


COUNTED = hash_of(b"frame")


def test_what_has_counted_moves_on(kept):
    assert kept.settle(facts(TWO, round=2, counted=COUNTED), at_once=False) == 1
    assert kept.own.read_bytes() == b"new"
    assert kept.frame(ONE) is None


@pytest.mark.parametrize("counted", ["", THREE])
def test_what_came_late_or_was_refused_leaves_no_trace(kept, counted):
    assert kept.settle(facts(TWO, round=2, counted=counted), at_once=False) is None
    assert kept.own.read_bytes() == b"old"
    assert sorted(path.name for path in kept.folder.iterdir() if path.is_file()) == ["own"]


def test_what_nobody_has_answered_is_sent_again_and_holds_when_it_has_counted(kept):
    assert kept.settle(facts(), at_once=False) is None
    assert kept.own.read_bytes() == b"old"
    assert Tentative(kept.folder).frame(ONE) == b"frame"
    assert kept.settle(facts(TWO, counted=COUNTED), at_once=False) == 1
    assert kept.own.read_bytes() == b"new"


def test_where_nobody_waits_an_update_holds_in_a_later_round(kept):
    assert kept.settle(facts(TWO, round=2, wanted=False), at_once=True) is None
    assert kept.frame(ONE) == b"frame"
    assert kept.settle(facts(THREE, round=3, counted=COUNTED), at_once=True) == 1
    assert kept.own.read_bytes() == b"new"


def test_a_kill_while_it_is_settled_is_made_good(kept):
    (kept.folder / "own.new").replace(kept.own)
    again = Tentative(kept.folder)
    assert again.settle(facts(TWO, round=2, counted=COUNTED), at_once=False) == 1
    assert kept.own.read_bytes() == b"new"
    assert again.settle(facts(TWO, round=2, counted=COUNTED), at_once=False) is None


def test_a_training_that_outlived_its_agent_touches_nothing_of_the_next(tmp_path):
    one = Tentative(tmp_path)
    before = one.attempt()
    (before / "own").write_bytes(b"stale")
    now = Tentative(tmp_path).attempt()
    (now / "own").write_bytes(b"new")
    with pytest.raises(FileNotFoundError):
        (before / "own").write_bytes(b"staler")
    one.keep(now / "own", 1, ONE, b"frame")
    assert (tmp_path / "own.new").read_bytes() == b"new"


@pytest.mark.parametrize("what", ["update", "answer"])
def test_what_is_lost_on_its_way_costs_no_training_and_counts_once(federation, tmp_path, monkeypatch, what):
    trained, lost, send = [], threading.Event(), Gate.send

    class Counts(Fake):
        def train(self, order, **options):
            trained.append((self.told.site, order.round, bool(order.own)))
            return super().train(order, **options)

    def lose(self, listed, kind, values, **options):
        is_first = kind == "update" and self.house.folder.name == "a" and not lost.is_set()
        told = send(self, listed, kind, values, **options) if what == "answer" or not is_first else b""
        if is_first:
            lost.set()
            raise Unreached("the cable was pulled")
        return told

    monkeypatch.setattr(part, "Process", Counts)
    monkeypatch.setattr(Gate, "send", lose)
    pack = make_pack(tmp_path)
    site = federation.site("a", pack)
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(lambda: site.parts and next(iter(site.parts.values())).is_done)
    assert lost.is_set()
    assert [one for one in trained if one[0] == "a"] == [("a", 1, False), ("a", 2, True), ("a", 3, True)]
    assert [len(one["updates"]) for one in federation.hosted().history()] == [2, 2, 2]
    (own,) = site.house.folder.glob("runs/*/own")
    with np.load(own) as found:
        assert found["seen"] == 3

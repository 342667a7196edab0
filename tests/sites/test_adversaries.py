"""What the server does not take, and from whom; and what sites do not take from a server."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from konvoi.errors import FleetError, StateError
from konvoi.fleet.wire.dial import Dial, as_answer, ask
from konvoi.plan.federated import fedavg, fedbuff
from konvoi.security.identity import Authority, Identity
from konvoi.security.identity import ask as make_key
from konvoi.security.signing import as_told
from konvoi.sites.house import House
from konvoi.sites.protocol import hash_of
from tests.sites.conftest import NUMBERS, Puppet, hold_roster, make_pack, weights


def begun(federation, pack, **options):
    """A run of this pack, and its two sites."""
    a, b = (Puppet(federation, name, pack) for name in "ab")
    federation.submit(pack, **options)
    federation.hall.look()
    a.ask(), b.ask()
    return a, b


@pytest.fixture
def two(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=3, deadline_s=30.0), ranges={"samples": (1.0, 10.0)})
    return federation, *begun(federation, pack)


def test_the_same_update_again_counts_once(two):
    federation, a, b = two
    data = a.frame(a.ask())
    a.post(data), a.post(data)  # its answer was lost
    b.post(b.frame(b.ask(), move=3.0))
    assert federation.hosted().state.round == 2
    assert np.allclose(weights(federation.hosted()), 2.0)
    with pytest.raises(FleetError, match=r"its round is decided|counted already"):
        a.post(data)
    assert "a" in federation.hosted().refused


def test_lying_weights_are_capped_and_told(two):
    federation, a, b = two
    a.post(a.frame(a.ask(), move=1.0, samples=10**9))
    b.post(b.frame(b.ask(), move=3.0, samples=10))
    assert np.allclose(weights(federation.hosted()), 2.0)
    assert any("study-1: a says that it has 1,000,000,000 samples; 10 count" in one for one in federation.said)
    assert federation.hosted().history()[0]["told"]["claimed_too_many_samples"] == {"a": 1e9}


def test_a_run_may_let_sites_claim_less_than_its_pack(federation, tmp_path):
    pack = make_pack(tmp_path, ranges={"samples": (1.0, 1000.0)})
    a, b = begun(federation, pack, settings={"samples": 3.0})
    a.post(a.frame(a.ask(), move=1.0, samples=900))
    b.post(b.frame(b.ask(), move=5.0, samples=1))
    assert np.allclose(weights(federation.hosted()), 2.0)


def waiting(run):
    """Updates that are kept in mind, and on disk."""
    return len(run.figures), len([*(run.folder / "updates").iterdir()])


def test_nothing_is_kept_of_what_is_refused_or_of_whom_is_gone(two, tmp_path):
    federation, a, _ = two
    c = Puppet(federation, "c", next(tmp_path.glob("*.pack")))
    run, facts = federation.hosted(), a.ask()
    wrong = (
        a.frame({**facts, "round": 2}),
        a.frame({**facts, "base": "00" * 32}),
        a.frame(facts, samples=0),
        c.frame(facts),
    )
    for who, frame in zip((a, a, a, c), wrong, strict=True):
        with pytest.raises(FleetError):
            who.post(frame)
    assert waiting(run) == (0, 0)
    a.post(a.frame(facts))
    with pytest.raises(FleetError, match="another update of this site is here"):
        a.post(a.frame(facts, move=2.0))
    assert waiting(run) == (1, 1)
    assert {type(value) for one in run.figures.values() for value in one.values()} == {float}  # and no frame in memory
    federation.desk.roster.revoke("a", time.time())
    federation.hall.look()
    assert waiting(run) == (0, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a, facts: a.frame({**facts, "round": 2}), "its round has not begun"),
        (lambda a, facts: a.frame({**facts, "round": 0}), "its round is decided"),
        (lambda a, facts: a.frame({**facts, "base": "00" * 32}), "its round is decided"),
        (lambda a, facts: a.frame(facts, samples=0), "learnt from nothing"),
        (lambda a, facts: a.frame(facts)[:-4] + np.float32("nan").tobytes(), "not finite"),
        (lambda a, facts: a.frame(facts) + b"\0", "this is no update"),
        (lambda a, facts: a.frame(facts)[:-1], "this is no update"),
        (lambda a, facts: a.frame(facts, run=bytes(32)), "there is no such run"),
        (lambda a, facts: b"update".ljust(16, b"\0"), "there is no such run"),
        (lambda a, facts: b"hello", "this may not leave"),
        (lambda a, facts: b"x" * (1 << 17), "a request has a length, and is not larger"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said_and_the_round_goes_on(two, change, why):
    federation, a, b = two
    with pytest.raises(FleetError, match=why):
        a.post(change(a, a.ask()))
    assert federation.desk.refused
    a.post(a.frame(a.ask()))
    b.post(b.frame(b.ask()))
    assert federation.hosted().state.round == 2


def test_another_update_of_the_same_site_does_not_replace_its_first(two):
    federation, a, b = two
    a.post(a.frame(a.ask(), move=1.0))
    with pytest.raises(FleetError, match="another update of this site is here"):
        a.post(a.frame(a.ask(), move=100.0))
    b.post(b.frame(b.ask(), move=1.0))
    assert np.allclose(weights(federation.hosted()), 1.0)


def test_a_member_revoked_in_mid_round_does_not_count(two, tmp_path):
    federation, a, b = two
    c = Puppet(federation, "c", next(tmp_path.glob("*.pack")))
    a.post(a.frame(a.ask(), move=100.0))
    federation.desk.roster.revoke("a", time.time())
    federation.hall.look()
    with pytest.raises(FleetError, match="no member's any more"):
        a.ask()
    b.post(b.frame(b.ask(), move=1.0))
    c.ask()
    assert federation.hosted().state.round == 1  # one update is below the least of this run
    assert "a" not in federation.hosted().state.came


def test_a_stranger_says_nothing(two, tmp_path):
    federation, _, _ = two
    pem = federation.authority.certificate.decode()
    with pytest.raises(FleetError, match="only members may ask this"):
        as_answer(*Dial(federation.dial, pem).post("/frame", b"ask"))
    other = Authority.make("other")
    other.issue("a").save(tmp_path / "other")
    with pytest.raises(FleetError):
        as_answer(*Dial(federation.dial, pem, tmp_path / "other").post("/frame", b"ask"))


def test_an_invitation_is_for_once_and_for_some_time(federation, tmp_path):
    pem, roster = federation.authority.certificate.decode(), federation.desk.roster
    token, late = roster.invite("a", time.time()), roster.invite("b", time.time() - 25 * 3600)

    def enrol(name, token, terms="terms"):
        key, request = make_key(name)
        body = {"name": name, "token": token, "request": request.decode(), "terms": terms}
        told = ask(federation.dial, "/enrol", body, pem)
        Identity(name, told["certificate"].encode(), key, pem.encode()).save(tmp_path / name)

    with pytest.raises(FleetError, match="another recipe, plan or version"):
        enrol("a", token, terms="other")
    enrol("a", token)
    with pytest.raises(FleetError, match="not known here, or was used"):
        enrol("a", token)
    with pytest.raises(FleetError, match="has expired"):
        enrol("b", late)


def run_and_fail(federation, site, why):
    until, raised = threading.Event(), []

    def run():
        try:
            site.run(until)
        except StateError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    federation.wait(lambda: raised or any(why in one for one in federation.said), 15)
    until.set()
    thread.join()
    assert not raised or why in raised[0].message, raised


def test_a_site_does_not_believe_a_roster_of_somebody_else(federation, tmp_path):
    site = federation.site("a")
    other = House(tmp_path / "other")
    hold_roster(other, *"ab")
    federation.hall._roster = lambda: as_told(other.versions())
    run_and_fail(federation, site, "does not take: it is another federation's")


def test_a_site_sees_that_a_roster_has_gone_back(federation, tmp_path):
    site = federation.site("a")
    hold_roster(site.house, *"abcd")
    run_and_fail(federation, site, "older than the one held here")


def test_sites_see_that_a_server_has_gone_back(federation, tmp_path):
    """Its disk was put back to what it was two rounds ago."""
    pack = make_pack(tmp_path, fedavg(rounds=400))
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 5)
    federation.stop()
    folder = next((federation.folder / "runs").glob("study-1"))
    lines = (folder / "decisions.jsonl").read_text().splitlines(keepends=True)
    back = json.loads(lines[1])["result"]
    (folder / "decisions.jsonl").write_text("".join(lines[:2]))
    (folder / "weights" / back).write_bytes(np.full(NUMBERS, 2.0, "<f4").tobytes())
    federation.start()
    federation.wait(lambda: any("the server has gone back: round 3" in one for one in federation.said))
    time.sleep(0.5)
    assert federation.hosted().state.round == 3


def test_a_site_sees_another_past_of_the_same_length(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=400))
    sites = [federation.site(name, pack) for name in "ab"]
    for site in sites:
        federation.run(site)
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 3)
    for site in sites:
        known = next(site.house.folder.glob("runs/*/known.json"))
        known.write_text(json.dumps({"round": 399, "base": "00" * 32}))
    federation.wait(lambda: any("the server has gone back" in one for one in federation.said))


def test_a_site_sees_a_fork_of_the_same_length(federation, tmp_path):
    """Its disk was put back by one round, which was then decided otherwise."""
    pack = make_pack(tmp_path, fedavg(rounds=400))
    sites = [federation.site(name, pack) for name in "ab"]
    for site in sites:
        federation.run(site)
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().state.round > 3)
    federation.stop()
    known = [json.loads(next(site.house.folder.glob("runs/*/known.json")).read_text()) for site in sites]
    number = max(one["round"] for one in known)
    log = federation.folder / "runs" / "study-1" / "decisions.jsonl"
    *before, last = (json.loads(line) for line in log.read_text().splitlines()[: number - 1])
    data = np.full(NUMBERS, 99.0, "<f4").tobytes()
    (log.parent / "weights" / hash_of(data)).write_bytes(data)
    log.write_text("".join(json.dumps(one) + "\n" for one in (*before, {**last, "result": hash_of(data)})))
    federation.start()
    why = f"the server shows other weights for round {number} than before"
    federation.wait(lambda: any(why in one for one in federation.said))


@pytest.fixture
def quick(federation, tmp_path):
    """A run in which nobody waits, a round behind one update."""
    pack = make_pack(tmp_path, fedbuff(buffer=1, cohort=2, rounds=9, max_staleness=1))
    return federation, *begun(federation, pack)


def test_who_is_too_late_where_nobody_waits_is_told(quick):
    federation, a, b = quick
    late = b.frame(b.ask())
    for number in (1.0, 2.0):
        a.post(a.frame(a.ask(), move=number))
    with pytest.raises(FleetError, match="it is 2 rounds late"):
        b.post(late)
    assert waiting(federation.hosted()) == (0, 0)
    assert federation.hosted().state.round == 3


def test_weights_that_nobody_remembers_are_no_base_where_nobody_waits(quick):
    federation, a, _ = quick
    with pytest.raises(FleetError, match="it began with weights that nobody remembers"):
        a.post(a.frame({**a.ask(), "base": "00" * 32}))
    assert waiting(federation.hosted()) == (0, 0)


def test_of_a_site_nothing_older_counts_than_what_has_counted(quick):
    federation, a, _ = quick
    facts = a.ask()
    a.post(a.frame(facts))
    with pytest.raises(FleetError, match="a later one of this site has been counted already"):
        a.post(a.frame(facts, move=2.0))
    assert federation.hosted().state.round == 2


def test_an_asynchronous_run_counts_what_is_late_and_damps_it(federation, tmp_path):
    pack = make_pack(tmp_path, fedbuff(buffer=1, cohort=2, rounds=3, damping=1.0))
    a, b = begun(federation, pack)
    late = b.frame(b.ask(), move=1.0)
    a.post(a.frame(a.ask(), move=1.0))
    assert np.allclose(weights(federation.hosted()), 1.0)
    b.post(late)  # it began with the weights before
    assert np.allclose(weights(federation.hosted()), 1.5)
    assert federation.hosted().history()[1]["updates"][0]["staleness"] == 1

"""A server whose disk is full for a moment, or holds something damaged: what sites are told is in its log, and one run
hinders no other."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

from konvoi.errors import FleetError, StateError
from konvoi.plan.federated import fedavg
from konvoi.sites import disk
from konvoi.sites.adding import Agreed, Learnt
from konvoi.sites.hosted import Hosted
from konvoi.verbs import runs
from tests.sites.conftest import NUMBERS, Puppet, make_pack, weights

PLAN = fedavg(rounds=3, deadline_s=30.0, outer_momentum=0.5)
WRITES = {
    "an update": (disk, "write", lambda path: path.parent.name == "updates"),
    "the outer step": (disk, "write", lambda path: path.suffix == ".outer"),
    "the weights": (disk, "write", lambda path: path.with_name(f"{path.name}.outer").exists()),  # not the first
    "the decision": (disk, "append", lambda path: True),
    "the folder behind it": (disk, "sync", lambda path: True),
    "what is not needed any more": (disk.Disk, "keep_only", lambda path: True),
}


def fail_once(monkeypatch, name):
    """The next call of this kind finds the disk full. Returns a list that is empty when it has."""
    where, what, is_it = WRITES[name]
    real, left = getattr(where, what), [name]

    def once(path, *given):
        if left and is_it(path):
            left.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *given)

    monkeypatch.setattr(where, what, once)
    return left


def expected(rounds):
    """Each site moves by one."""
    agreed = Agreed(PLAN, np.zeros(NUMBERS, np.float32))
    for _ in range(rounds):
        agreed.take([Learnt(np.full(NUMBERS, -1.0, np.float32), np.zeros(0, np.float32), 1.0)] * 2, 2)
    return agreed.weights.numpy()


def check_that_all_agree(federation, puppet):
    told, history = puppet.ask(), federation.hosted().history()
    assert told["round"] == len(history) + 1
    assert told["base"] == (history[-1]["result"] if history else federation.hosted().first)


def play(puppets, number):
    """A round, by sites that hear what there is to do and do it."""
    for one in puppets:
        one.ask()
    for one in puppets:
        facts = one.ask()
        if facts["round"] == number and facts["wanted"]:
            one.post(one.frame(facts))


@pytest.mark.parametrize("name", WRITES)
def test_what_sites_are_told_is_in_the_log_whichever_write_fails(federation, tmp_path, monkeypatch, name):
    pack = make_pack(tmp_path, PLAN)
    puppets = a, b = [Puppet(federation, name, pack) for name in "ab"]
    federation.submit(pack)
    federation.hall.look()
    a.ask(), b.ask()
    a.post(a.frame(a.ask()))
    frame, left = b.frame(b.ask()), fail_once(monkeypatch, name)
    with pytest.raises(FleetError, match="the server's disk fails") as raised:
        b.post(frame)
    assert raised.value.found == "No space left on device"
    assert not left
    check_that_all_agree(federation, a)
    play(puppets, 1)
    assert federation.hosted().state.round == 2
    assert np.allclose(weights(federation.hosted()), expected(1))
    play(puppets, 2)
    assert np.allclose(weights(federation.hosted()), expected(2))
    check_that_all_agree(federation, b)
    federation.stop()
    federation.start()
    check_that_all_agree(federation, a)
    assert np.allclose(weights(federation.hosted()), expected(2))
    assert any("study-1: the disk fails: [Errno 28]" in one for one in federation.said)


@pytest.mark.parametrize("name", ["the outer step", "the weights", "the decision"])
def test_a_run_goes_on_by_itself_after_a_failed_write(federation, tmp_path, monkeypatch, name):
    pack = make_pack(tmp_path, PLAN)
    for one in "ab":
        federation.run(federation.site(one, pack))
    left = fail_once(monkeypatch, name)
    federation.submit(pack)
    soon_s = 12.0  # below `HELD_S`: no answer is held back that tells a site to send again
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over, soon_s)
    assert not left
    assert [one["round"] for one in federation.hosted().history()] == [1, 2, 3]
    assert np.allclose(weights(federation.hosted()), expected(3))


def _with_settings(folder, settings):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))


DAMAGES = {
    "half an entry": lambda folder: (folder / "decisions.jsonl").write_text('{"round":\n'),
    "an entry without a result": lambda folder: (folder / "decisions.jsonl").write_text('{"round": 1}\n'),
    "an entry of another kind": lambda folder: (folder / "decisions.jsonl").write_text("[1, 2]\n"),
    "no settings": lambda folder: _with_settings(folder, None),
    "settings that are words": lambda folder: _with_settings(folder, {"rounds": "many"}),
    "no pack": lambda folder: (folder / "pack").unlink(),
    "half a pack": lambda folder: (folder / "pack").write_bytes((folder / "pack").read_bytes()[:500]),
    "other weights": lambda folder: [one.write_bytes(b"1234") for one in (folder / "weights").iterdir()],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_hinders_no_other(federation, tmp_path, monkeypatch, name):
    bad, good = make_pack(tmp_path, name="broken"), make_pack(tmp_path, name="good")
    federation.submit(bad)
    federation.wait(lambda: federation.hall.runs)
    federation.stop()
    DAMAGES[name](federation.folder / "runs" / "broken-1")
    federation.submit(good)
    federation.start()
    for one in "ab":
        federation.run(federation.site(one, good))
    federation.wait(lambda: federation.hosted().is_over)
    assert federation.hosted().run.id == "good-1"
    assert len([one for one in federation.said if "broken-1 cannot go on" in one]) == 1
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))
    states = {one["run"]: one["state"] for one in runs.runs(federation.folder)}
    assert states["good-1"] == "over"
    assert "good-1" in runs.as_table(runs.runs(federation.folder))


def test_a_run_that_fails_while_it_is_looked_at_hinders_no_other(federation, tmp_path, monkeypatch):
    look = Hosted.look

    def fails(run):
        if run.run.id == "broken-1":
            raise TypeError("a mistake")
        look(run)

    monkeypatch.setattr(Hosted, "look", fails)
    bad, good = make_pack(tmp_path, name="broken"), make_pack(tmp_path, name="good")
    federation.submit(bad)
    federation.wait(lambda: any("broken-1 cannot go on: TypeError('a mistake')" in one for one in federation.said))
    federation.submit(good)  # it is found by the same thread
    for one in "ab":
        federation.run(federation.site(one, good))
    federation.wait(lambda: len(federation.hall.runs) == 2 and federation.hosted(1).is_over)


def test_a_run_that_could_not_be_read_is_tried_again(federation, tmp_path):
    federation.stop()
    now = [1000.0]
    federation.hall.clock = lambda: now[0]
    folder = federation.submit(make_pack(tmp_path))
    told = (folder / "run.json").read_text()
    (folder / "run.json").write_text("")
    federation.hall.look()
    (folder / "run.json").write_text(told)
    federation.hall.look()
    assert not federation.hall.runs
    now[0] += 61.0
    federation.hall.look()
    assert len(federation.hall.runs) == 1
    federation.start()


def test_a_run_that_cannot_be_read_says_so_in_our_own_words(federation, tmp_path):
    federation.stop()
    folder = federation.submit(make_pack(tmp_path))
    told = json.loads((folder / "run.json").read_text())
    for wrong in ("", "[]", "{}", json.dumps({**told, "first": "two"}), json.dumps({**told, "settings": [1]})):
        (folder / "run.json").write_text(wrong)
        with pytest.raises(StateError):
            Hosted(folder, tuple)
    federation.start()


def test_updates_of_a_server_that_was_killed_are_not_kept_for_ever(federation, tmp_path):
    pack = make_pack(tmp_path)
    a, b = (Puppet(federation, name, pack) for name in "ab")
    federation.submit(pack)
    federation.hall.look()
    a.ask(), b.ask()
    a.post(a.frame(a.ask()))
    assert [*(federation.hosted().folder / "updates").iterdir()]
    federation.stop()
    federation.start()
    assert not [*(federation.hosted().folder / "updates").iterdir()]
    assert not federation.hosted().figures

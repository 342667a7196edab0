"""What a run may set, when it ends by itself, what is pulled, and what is refused before it begins."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from konvoi.errors import PlanError, StateError
from konvoi.plan.federated import fedavg, fedbuff
from konvoi.security.roster import Roster
from konvoi.sites.protocol import OPEN, convoy_of, told_of
from konvoi.state import safetensors
from konvoi.verbs import runs
from tests.sites.conftest import make_pack, weights


@pytest.fixture
def told(monkeypatch):
    """The verbs look for a federation that a person has founded."""
    monkeypatch.setattr(runs.Terms, "read", classmethod(lambda cls, folder: None))


def test_a_run_that_gets_no_better_ends_and_its_best_weights_are_pulled(federation, tmp_path, told):
    """Sites find weights the worse the further they are from 5, and move by 1 a round."""
    pack = make_pack(
        tmp_path, fedavg(rounds=50), tell=("loss", "valid"), ranges={"patience": (1.0, 9.0), "rounds": (1.0, 50.0)}
    )
    for name in "ab":
        federation.run(federation.site(name, pack))
    run = federation.submit(pack, settings={"patience": 2.0, "rounds": 40.0})
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    hosted = federation.hosted()
    assert (hosted.status, len(hosted.history())) == ("stopped", 8)
    assert (run / "stopped").read_text() == "early stopping: no better than after round 5 for 2 rounds"
    assert runs.runs(federation.folder)[0]["of"] == 40
    best = runs.pull(federation.folder, run.name, out=tmp_path / "best", best=True)
    newest = runs.pull(federation.folder, run.name, out=tmp_path / "newest")
    for folder, number in ((best, 5), (newest, 8)):
        assert np.allclose(safetensors.read(folder / "model.safetensors")["weight"], number)
        assert json.loads((folder / "history.json").read_text())["weights_of_round"] == number


def test_the_best_weights_are_known_again_after_a_restart(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=7), tell=("loss", "valid"))
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    before = vars(federation.hosted().best)
    assert before["worse"] == 1
    federation.stop()
    federation.start()
    assert vars(federation.hosted().best) == before


def test_two_runs_go_on_at_once_under_one_server(federation, tmp_path):
    packs = [make_pack(tmp_path, fedavg(rounds=20), name=name) for name in ("one", "two")]
    for pack in packs:
        federation.submit(pack)
    for name, number in (("a", "1"), ("b", "3")):
        site = federation.site(name, packs[0], data=number)
        site.house.approve(*site.house.take_in(packs[1]))
        federation.run(site)
    federation.wait(
        lambda: len(federation.hall.runs) == 2 and all(one.is_over for one in federation.hall.runs.values())
    )
    at = []
    for run in federation.hall.runs.values():
        assert np.allclose(weights(run), 20 * (1 + 9) / 4)
        at.append([one["at"] for one in run.history()])
    assert max(one[0] for one in at) < min(one[-1] for one in at)


def test_a_plan_with_fields_that_nobody_knows_is_of_another_version():
    plan = told_of(fedavg(rounds=3))
    assert convoy_of(plan, dict.fromkeys(OPEN, 3.0)).rounds == 3
    for wrong in ({**plan, "masks": 2}, {**plan, "local": {"masks": 2}}, {"rounds": 3}, {**plan, "rounds": None}):
        with pytest.raises((StateError, PlanError)) as raised:
            convoy_of(wrong, {})
        assert "another version" in raised.value.message or wrong["rounds"] is None


@pytest.mark.parametrize(
    ("plan", "options", "why"),
    [
        (fedavg(rounds=3, cohort=2), {"least": 3}, "a cohort of 2, and at least 3 updates"),
        (fedavg(rounds=3), {"least": 3, "settings": {"cohort": 2.0}}, "a cohort of 2, and at least 3 updates"),
        (fedbuff(rounds=3, buffer=4), {}, "4 at once, of 3 members and invited"),
        (fedavg(rounds=3), {"least": 0}, "first=2, least=0"),
        (fedavg(rounds=3), {"first": 0}, "first=0, least=2"),
    ],
)
def test_a_run_whose_rounds_could_never_end_is_refused(federation, tmp_path, plan, options, why):
    for name in "ab":
        federation.enrol(name)
    federation.desk.roster.invite("c", time.time())
    pack = make_pack(tmp_path, plan, ranges={"cohort": (1.0, 9.0)})
    with pytest.raises(PlanError) as raised:
        federation.submit(pack, **options)
    assert raised.value.found == why
    assert not [*(federation.folder / "runs").glob("*")]


def test_a_run_is_called_by_its_name_alone(federation, tmp_path, told):
    federation.submit(make_pack(tmp_path))
    for name in ("../runs/study-1", "..", ""):
        with pytest.raises(StateError, match="there is no such run"):
            runs.stop(federation.folder, name)


def test_a_roster_is_told_as_it_is_at_one_moment(federation, monkeypatch):
    """Else a site would be shown two lists of one length, and not believe the second."""
    roster, take = federation.hall.roster, Roster._take

    def slowly(self, entry):
        take(self, entry)
        if self is roster:
            time.sleep(0.05)

    monkeypatch.setattr(Roster, "_take", slowly)
    seen, is_over = {}, threading.Event()

    def look():
        while not is_over.is_set():
            told = federation.hall._roster()
            seen.setdefault(len(told), set()).add(tuple(one["text"] for one in told))

    looking = threading.Thread(target=look)
    looking.start()
    for name in "abcd":
        federation.enrol(name)
    is_over.set()
    looking.join()
    assert len(seen) > 1
    assert all(len(lists) == 1 for lists in seen.values()), seen

"""The server's machine under a thousand seeds of a bad network and a server that is killed."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from konvoi.plan.sync import served
from konvoi.plan.sync import serving as ev
from tests.plan.sync.served_world import World

SEEDS, CHUNK = 1000, 50
FAULTS = {
    "server killed": 500,
    "server killed with a round under way": 200,
    "killed between the weights and the log": 200,
    "killed behind the log": 200,
    "site killed": 2000,
    "question lost": 2000,
    "answer lost": 2000,
    "update lost": 500,
    "update doubled": 500,
    "straggler": 500,
    "revoked": 100,
}


def run(first):
    """A chunk of seeds; what was done to them."""
    faults = Counter()
    for seed in range(first, first + CHUNK):
        world = World(seed).run()
        faults += world.faults
        there = len(world.sites) - len(world.revoked)
        if there >= max(world.terms.least, world.terms.at_once, 1 if world.log else world.terms.first):
            assert world.state.is_over, f"seed {seed}: {world.terms}, {world.state}"
    return faults


def test_no_round_is_lost_or_decided_twice_and_each_run_ends():
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults = sum(pool.map(run, range(0, SEEDS, CHUNK)), Counter())
    for kind, least in FAULTS.items():
        assert faults[kind] >= least, (kind, faults)


def _forgets_the_log(terms, first, log):
    return served.restart(terms, first, log[:-1])


def _takes_any_base(s, event):
    if isinstance(event, ev.Came) and not s.terms.at_once:
        event = dataclasses.replace(event, update=dataclasses.replace(event.update))
        state, out = served.advance(s, event)
        if any(isinstance(one, ev.Refuse) and one.why == "its round is decided" for one in out) and not s.adding_up:
            came = {**s.came, event.update.site: ev.Counted(event.update)}
            state.came = came
        return state, out
    return served.advance(s, event)


def _counts_again(s, event):
    if isinstance(event, ev.Came):
        s = dataclasses.replace(s, last={})
    return served.advance(s, event)


def _decides_too_soon(s, event):
    return served.advance(dataclasses.replace(s, terms=dataclasses.replace(s.terms, least=1, quorum=0.0)), event)


def _asks_the_revoked(s, event):
    if isinstance(event, ev.Gone):
        return s, ()
    return served.advance(s, event)


def _ages_nobody(s, event):
    state, out = served.advance(s, event)
    if isinstance(event, ev.Made) and state.came:
        state.came = {site: dataclasses.replace(one, staleness=0) for site, one in state.came.items()}
    return state, out


BUGS = {
    "the last entry of the log is lost": {"restart": _forgets_the_log},
    "an update of other weights is taken": {"machine": _takes_any_base},
    "an update counts again": {"machine": _counts_again},
    "decided with too few": {"machine": _decides_too_soon},
    "who was revoked is asked": {"machine": _asks_the_revoked},
    "who waits does not grow stale": {"machine": _ages_nobody},
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name):
    for seed in range(500):
        try:
            World(seed, **BUGS[name]).run(600.0)
        except AssertionError:
            return
    raise AssertionError(f"not found in 500 seeds: {name}")


def at(state, *events):
    out = []
    for event in events:
        state, actions = served.advance(state, event)
        out += actions
    return state, out


def test_a_round_of_two_from_beginning_to_end():
    state = served.restart(ev.Terms(rounds=1, first=2), "w0", ())
    state, out = at(state, ev.Present("a", 0.0))
    assert not out
    assert not state.wants("a")  # the other is not there
    state, out = at(state, ev.Present("b", 1.0))
    assert out == [ev.Asked(1, 0, ("a", "b"))]
    first, second = (ev.Update(site, "w0", f"u{site}", 5.0) for site in "ab")
    state, out = at(state, ev.Came(second, 2.0), ev.Came(second, 2.5))
    assert not out
    assert not state.wants("b")
    state, out = at(state, ev.Came(first, 3.0))
    assert out == [ev.AddUp(1, "w0", (ev.Counted(first), ev.Counted(second)))]
    state, out = at(state, ev.Made(1, "w1", 4.0))
    assert out == [ev.Write(1, "w0", "w1", (ev.Counted(first), ev.Counted(second))), ev.Over()]
    assert ev.written(ev.plain(out[0])) == out[0]
    assert at(state, ev.Came(first, 5.0))[1] == [ev.Refuse(first, "the run is over")]


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (ev.Update("a", "w9", "x", 1.0), "its round is decided"),
        (ev.Update("c", "w0", "x", 1.0), "this site is not of the round's cohort"),
        (ev.Update("a", "w0", "x", float("nan")), "its weight is no number from 0"),
        (ev.Update("b", "w0", "y", 1.0), "another update of this site is here"),
    ],
)
def test_what_is_not_taken_is_said(update, why):
    state = served.restart(ev.Terms(rounds=2, first=2), "w0", ())
    state, _ = at(state, ev.Present("a", 0.0), ev.Present("b", 0.0), ev.Came(ev.Update("b", "w0", "x", 1.0), 1.0))
    assert at(state, ev.Came(update, 2.0))[1] == [ev.Refuse(update, why)]


def test_who_is_late_is_not_waited_for_past_the_deadline():
    state = served.restart(ev.Terms(rounds=2, first=3, deadline_s=10.0), "w0", ())
    state, _ = at(state, *(ev.Present(site, 0.0) for site in "abc"))
    two = [ev.Came(ev.Update(site, "w0", site, 1.0), 1.0) for site in "ab"]
    state, out = at(state, *two, ev.Present("c", 10.0), ev.Looked(10.9))
    assert not out
    state, out = at(state, ev.Looked(11.0))
    assert [one.update.site for one in out[0].updates] == ["a", "b"]


def test_a_person_at_a_site_is_waited_for_past_the_deadline_as_long_as_patience_lasts():
    state = served.restart(ev.Terms(rounds=2, first=3, deadline_s=10.0, patience_s=40.0), "w0", ())
    state, _ = at(state, *(ev.Present(site, 0.0) for site in "abc"))
    state, out = at(state, *(ev.Came(ev.Update(site, "w0", site, 1.0), 1.0) for site in "ab"))
    holding, out = at(state, ev.Present("c", 10.0, holds=True), ev.Present("c", 35.0, holds=True), ev.Looked(40.0))
    assert not out
    _, out = at(holding, ev.Came(ev.Update("c", "w0", "c", 1.0), 40.0))
    assert [one.update.site for one in out[0].updates] == ["a", "b", "c"]
    _, out = at(holding, ev.Looked(40.1))
    assert [one.update.site for one in out[0].updates] == ["a", "b"]
    _, out = at(state, ev.Present("c", 10.0, holds=True), ev.Present("c", 11.0))  # it was let go, or forbidden
    assert [one.update.site for one in out[0].updates] == ["a", "b"]


def test_a_cohort_that_brings_nothing_is_replaced_by_those_who_are_there():
    state = served.restart(ev.Terms(rounds=2, first=4, cohort=2, patience_s=20.0), "w0", ())
    state, (asked,) = at(state, *(ev.Present(site, 0.0) for site in "abcd"))
    gone = asked.cohort
    there = [site for site in "abcd" if site not in gone]
    state, out = at(state, *(ev.Present(site, 40.0) for site in there))
    assert out[-1].attempt > asked.attempt
    assert {*out[-1].cohort} <= {*there}

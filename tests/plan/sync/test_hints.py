"""What the wire's hints, and a member's own word that it does not stand, save in waiting."""

import pytest

from konvoi.plan.sync import events as ev
from konvoi.plan.sync import state as st
from konvoi.plan.sync.messages import Decision, Join, Offer, Select, Update
from konvoi.plan.sync.round import advance

NAMES = ("a", "b", "c", "d")
RULES = st.Rules(num_parts=1, lease=10, deadline_s=30, patience_s=60, beat_s=2)
FIRST = Decision.first(NAMES, NAMES, 10)  # of its next round b is the first proposer, then c, d, a


def island(name, *events, rules=RULES):
    state, out = st.State(name, rules, FIRST), []
    for event in (ev.Started(stands=True), *events):
        state, out = advance(state, event)
    return state, out


def offer(name):
    return ev.Received(name, Offer(1, Update(name, 0, 10, 10.0, (f"part of {name}",), "anchor")))


def selects(actions):
    return [one.message for one in actions if isinstance(one, ev.Send) and isinstance(one.message, Select)]


def timers(actions, name):
    return [one.seconds for one in actions if isinstance(one, ev.SetTimer) and one.name == name]


def test_the_proposer_waits_for_all_whom_it_reaches():
    _, actions = island("b", offer("a"), offer("b"), offer("c"))
    assert selects(actions) == []
    _, actions = island("b", offer("a"), offer("b"), ev.Lost("d"), offer("c"))
    assert {one.member for one in selects(actions)[0].updates} == {"a", "b", "c"}


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_the_loss_of_the_last_who_was_waited_for_ends_the_wait_whenever_it_comes(when):
    events = [offer("a"), offer("b"), offer("c")]
    events.insert(when, ev.Lost("d"))
    _, actions = island("b", *events)
    assert len({one.updates for one in selects(actions)}) == 1


def test_who_is_found_again_is_waited_for_again():
    _, actions = island("b", ev.Lost("d"), ev.Found("d"), offer("a"), offer("b"), offer("c"))
    assert selects(actions) == []


def test_fewer_than_the_quorum_wait_for_the_deadline_however_many_are_lost():
    lost = [ev.Lost(name) for name in ("a", "c", "d")]
    _, actions = island("b", *lost, offer("b"))
    assert selects(actions) == []


def test_a_member_that_says_that_it_does_not_stand_is_not_waited_for_until_it_offers():
    away = ev.Received("d", Join(0, stands=False))
    _, actions = island("b", away, offer("a"), offer("b"), offer("c"))
    assert len(selects(actions)[0].updates) == 3
    _, actions = island("b", away, offer("d"), offer("a"), offer("b"))
    assert selects(actions) == []  # c is missing, and d is back
    _, actions = island("b", away, ev.Received("d", Join(0, stands=True)), offer("a"), offer("b"), offer("c"))
    assert selects(actions) == []


def test_the_turn_of_a_proposer_out_of_reach_is_not_waited_out():
    _, actions = island("c", offer("a"))
    assert timers(actions, "patience") == [60]
    _, actions = island("c", offer("a"), ev.Lost("b"))
    assert timers(actions, "patience") == [2]
    _, actions = island("d", offer("a"), ev.Lost("b"))
    assert timers(actions, "patience") == [62]  # c comes before it
    _, actions = island("d", ev.Lost("b"), ev.Lost("c"), offer("a"))
    assert timers(actions, "patience") == [4]


def test_a_ballot_whose_owner_is_lost_is_run_again_by_its_proposer():
    everybody = [offer(name) for name in NAMES]
    state, actions = island("b", *everybody)
    assert "d" in selects(actions)[0].owners
    state, actions = advance(state, ev.Lost("d"))
    assert state.ballot > 0
    assert state.phase == "prepare"

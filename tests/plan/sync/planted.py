"""Bugs of consensus, each as somebody might write it. A simulation must find every one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

from konvoi.plan.sync import events, hearing, leases, propose, round
from konvoi.plan.sync.messages import Promise
from konvoi.plan.sync.state import Durable, State


def no_majority():
    """Whoever proposes is enough."""
    return patch.object(propose, "majority", lambda s: 1)


def vote_not_durable():
    """What was voted for is forgotten in a crash."""
    return patch.object(State, "durable", lambda s: Durable(s.last, s.promised, None))


def promise_not_durable():
    """And what was promised."""
    return patch.object(State, "durable", lambda s: Durable(s.last, -1 if s.vote is None else s.vote.ballot, s.vote))


def residue_lost():
    """What encoding has left over is taken as sent, whether the update was counted or not."""

    class Apply(round.Apply):
        def __init__(self, decision, own, counted):
            super().__init__(decision, own, own or counted)

    return patch.object(round, "Apply", Apply)


def counted_twice_after_retransmission():
    """An offer that comes again is another one."""
    original, select = hearing.MESSAGES[hearing.Offer], propose._select

    def on_offer(s, out, sender, message):
        again = s.offers.get(sender)
        original(s, out, sender, message)
        if again is not None:
            s.offers = {**s.offers, f"{sender} again": again}

    def select_again(s):
        found = select(s)
        again = tuple(s.offers[name] for name in sorted(s.offers) if name not in s.last.members)
        return replace(found, updates=(*found.updates, *again))

    return _all(patch.dict(hearing.MESSAGES, {hearing.Offer: on_offer}), patch.object(propose, "_select", select_again))


def stale_roster():
    """The majority is that of the roster before."""

    def majority(s):
        voters = s.kept[-2].voters if len(s.kept) > 1 else s.last.voters
        return len(voters) // 2 + 1

    return patch.object(propose, "majority", majority)


def joiner_votes_early():
    """Members vote, before one update of theirs has counted."""

    def on_accepted(s, out, sender, message):
        if s.phase == "propose" and message.ballot == s.ballot:
            s.accepted |= {sender}

    def propose_to_all(s, out, value):
        s.phase, s.proposal, s.accepted = "propose", value, frozenset()
        for peer in s.everybody:
            out.append(events.Send(peer, propose.Propose(s.round, s.ballot, value)))

    return _all(
        patch.object(State, "is_voter", property(lambda s: s.me in s.everybody)),
        patch.dict(hearing.MESSAGES, {propose.Accepted: on_accepted}),
        patch.object(propose, "_propose", propose_to_all),
        patch.object(propose, "next_ballot", _lenient(propose.next_ballot)),
    )


def applied_before_decided():
    """What is proposed is taken as decided."""
    original = hearing.MESSAGES[propose.Propose]

    def on_propose(s, out, sender, message):
        original(s, out, sender, message)
        if s.decided is None and message.decision.previous == s.last.id:
            s.decided = message.decision

    return patch.dict(hearing.MESSAGES, {propose.Propose: on_propose})


def timer_taken_for_death():
    """Who has not answered in time does not count for a majority."""

    def majority(s):
        if s.ballot > 0:
            return max(1, len(s.promises) // 2 + 1)
        return len(s.last.voters) // 2 + 1

    return patch.object(propose, "majority", majority)


def old_attempt_accepted():
    """A promise to a later ballot does not bind."""
    return patch.object(propose, "is_open", lambda s, ballot: True)


def two_owners_of_a_part():
    """The proposer takes a sum from whoever sends one first, whichever ballot it was for."""

    def on_reduced(s, out, sender, message):
        if s.phase == "reduce":
            s.reduced = {**s.reduced, message.part: message.hash}

    return patch.dict(hearing.MESSAGES, {propose.Reduced: on_reduced})


def promise_without_the_vote():
    """A later proposer does not hear of what may have been decided."""
    original = hearing.MESSAGES[hearing.Prepare]

    def on_prepare(s, out, sender, message):
        original(s, out, sender, message)
        out[:] = [
            replace(one, message=replace(one.message, vote=None))
            if isinstance(one, events.Send) and isinstance(one.message, Promise)
            else one
            for one in out
        ]

    return patch.dict(hearing.MESSAGES, {hearing.Prepare: on_prepare})


def first_ballot_run_again():
    """A proposer that was restarted begins as if it never had."""
    original = round.EVENTS[events.Started]

    def started(s, out, event):
        if s.promised == 0:
            s.promised = -1
        original(s, out, event)

    return patch.dict(round.EVENTS, {events.Started: started})


def votes_without_the_sums():
    """What is decided may be nowhere."""
    return patch.object(round, "_may_vote", lambda s, decision: True)


def lease_of_the_dead_given_twice():
    """Whoever is gone gives its positions back, and takes them along."""
    original = leases.next_leases

    def next_leases(last, members, counted, lease, ahead):
        given, cursor, returned = original(last, members, counted, lease, ahead)
        again = tuple(r for name, ranges in last.leases if name not in members for r in ranges)
        return given, cursor, (*returned, *again)

    return patch.object(leases, "next_leases", next_leases)


def step_under_way_forgotten():
    """A snapshot is taken for one of the step at which it was asked for."""
    original = round.EVENTS[events.Snapshotted]

    def snapshotted(s, out, event):
        original(s, out, event if s.snapped is None else replace(event, step=s.snapped))

    return patch.dict(round.EVENTS, {events.Snapshotted: snapshotted})


BUGS: list[Callable[[], contextlib.AbstractContextManager[object]]] = [
    no_majority,
    vote_not_durable,
    promise_not_durable,
    residue_lost,
    counted_twice_after_retransmission,
    stale_roster,
    joiner_votes_early,
    applied_before_decided,
    timer_taken_for_death,
    old_attempt_accepted,
    two_owners_of_a_part,
    promise_without_the_vote,
    first_ballot_run_again,
    votes_without_the_sums,
    lease_of_the_dead_given_twice,
    step_under_way_forgotten,
]


@contextlib.contextmanager
def _all(*patches: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


def _lenient(original):
    def next_ballot(s):
        return original(s) if s.me in s.last.voters else 10**6

    return next_ballot

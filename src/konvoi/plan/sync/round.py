"""The round, as a pure machine: `advance(state, event) -> (state, actions)`, one for each island.

A round ends with one decision, found by Paxos (Lamport, The Part-Time Parliament, 1998) among the voters that the
decision before has named: nobody votes on a round before it has that decision, so that a change of roster needs no
protocol of its own (Lamport, Malkhi, Zhou, Reconfiguring a State Machine, 2010, with alpha = 1). What is voted on is
what was added up, and only those vote who hold the sums, so that what was decided can be had from a majority. With one
server for a voter this is its log.

    member   Snapshot -> Offer -> (Select) -> Piece -> Result held -> vote -> Apply
    owner    Select -> pieces -> Reduce -> Result to all
    proposer offers -> Select -> Reduced -> Propose -> Accepted by a majority -> Decided

Nothing is answered with "received": who lacks something asks for it at each beat until it is there.
"""

from __future__ import annotations

from collections.abc import Callable

from konvoi.plan.sync import hearing, outcome, propose
from konvoi.plan.sync.events import (
    Action,
    Apply,
    Ending,
    Event,
    Fetch,
    Fetched,
    Found,
    Hold,
    Leaving,
    Lost,
    Out,
    Persist,
    Received,
    Reduce,
    Reform,
    Send,
    SetTimer,
    Snapshot,
    Snapshotted,
    Started,
    Stepped,
    Summed,
    Timer,
    to_each,
)
from konvoi.plan.sync.messages import Accepted, Ask, Decision, Join, Leave, Offer, Reduced, Result, Update, Vote, Want
from konvoi.plan.sync.state import BLANK, State, copied, written


def advance(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """What follows from an event. The state that is given stays as it is."""
    s = copied(state)
    out: list[Action] = []
    EVENTS[type(event)](s, out, event)
    _see_to_it(s, out)
    while own := [action for action in out if type(action) is Send and action.to == s.me]:  # no wire for these
        out = [action for action in out if type(action) is not Send or action.to != s.me]
        for action in own:
            hearing.receive(s, out, s.me, action.message)
            _see_to_it(s, out)
    if written(s) != written(state):
        # Before anything is sent: what somebody else knows of this island, it knows itself after a crash.
        first = next((n for n, action in enumerate(out) if isinstance(action, (Send, Apply))), len(out))
        out.insert(first, Persist(s.durable()))
    return s, tuple(out)


# -- what happens here -------------------------------------------------------------------------------------------------


def _started(s: State, out: list[Action], event: Started) -> None:
    s.stands, s.since = event.stands, max(0, s.last.round)
    s.heard = dict.fromkeys(s.everybody, s.last.round)
    out.append(SetTimer("beat", 0, s.rules.beat_s))
    _be_patient(s, out)
    if s.is_voter and s.promised >= 0 and propose.proposer(s.last, s.promised) == s.me:
        propose.begin(s, out, propose.next_ballot(s))  # what it had proposed is lost, and nobody else knows


def _be_patient(s: State, out: list[Action]) -> None:
    """For a voter that comes into a round in the middle: nobody may say anything more in it."""
    if s.is_voter:
        out.append(SetTimer("patience", s.round, propose.patience(s)))


def _stepped(s: State, out: list[Action], event: Stepped) -> None:
    s.step = event.step
    _hold(s, out)


def _hold(s: State, out: list[Action]) -> None:
    if s.snapped is not None and s.step - s.snapped >= s.rules.max_ahead:
        out.append(Hold())


def _snapshotted(s: State, out: list[Action], event: Snapshotted) -> None:
    if event.round == s.round and s.snapped is not None and s.own is None:  # else of a round that has ended
        s.snapped = event.step
        s.own = Update(s.me, s.last.round, event.samples, event.weight, event.parts, event.anchor, s.since, event.cost)
        _offer(s, out)


def _offer(s: State, out: list[Action]) -> None:
    assert s.own is not None
    out += to_each(s.last.voters, Offer(s.round, s.own))


def _summed(s: State, out: list[Action], event: Summed) -> None:
    select = s.select
    if select is None or (event.round, event.ballot) != (s.round, select.ballot):
        return
    s.sums = {**s.sums, event.part: event.hash}
    s.held |= {event.hash}
    out += to_each((peer for peer in s.everybody if peer != s.me), Result(s.round, event.hash))
    _tell_sum(s, out, event.part)


def _tell_sum(s: State, out: list[Action], part: int) -> None:
    assert s.select is not None
    sum_ = Reduced(s.round, s.select.ballot, part, s.sums[part])
    out.append(Send(propose.proposer(s.last, s.select.ballot), sum_))


def _fetched(s: State, out: list[Action], event: Fetched) -> None:
    if s.stands or event.decision.round < s.last.round:
        return
    if event.decision.round > s.last.round:
        _enter(s, event.decision)
        _be_patient(s, out)
    s.snapped = s.own = None  # of the model that was here before
    s.stands, s.began, s.sent, s.since = True, s.step, s.step, s.last.round


def _ending(s: State, out: list[Action], event: Ending) -> None:
    s.is_ending = True


def _reform(s: State, out: list[Action], event: Reform) -> None:
    if s.is_member and s.stands:
        s.decided = outcome.alone(s)


def _leaving(s: State, out: list[Action], event: Leaving) -> None:
    s.leaving = True
    out += to_each(s.last.voters, Leave(s.last.round))


def _timer(s: State, out: list[Action], event: Timer) -> None:
    if event.name == "beat":
        s.beats += 1
        out.append(SetTimer("beat", 0, s.rules.beat_s))
        _beat(s, out)
    elif event.round == s.round and event.name == "deadline":
        s.is_late = True
    elif event.round == s.round and event.name == "patience" and s.is_voter:
        propose.begin(s, out, propose.next_ballot(s))


def _beat(s: State, out: list[Action]) -> None:
    """Ask again for whatever is missing."""
    others = [peer for peer in s.everybody if peer != s.me]
    if s.is_out or not others:
        return
    is_settled = s.is_member and s.stands and (s.is_voter or bool(s.rules.servers or s.rules.deciders))
    if s.can_be_member and not s.leaving and not is_settled:
        out += to_each(s.last.voters, Join(s.last.round, s.stands and s.is_member))
    if not s.stands and s.last.round >= 0:
        out.append(Fetch(tuple(others), at_beat=True))
    if s.leaving and s.last.round >= 0:
        out += to_each(s.last.voters, Leave(s.last.round))
    if s.own is not None and (s.select is None or s.own not in s.select.updates):
        _offer(s, out)
    if s.select is not None:
        for part in s.own_parts:
            out += to_each(_lacking(s, part), Want(s.round, s.select.ballot, (part,)))
            if part in s.sums:
                _tell_sum(s, out, part)
    for decision in (s.decided, s.pending.decision if s.pending else None):
        if decision is not None:
            hearing.ask_for_results(s, out, decision)
    propose.remind(s, out)
    out.append(Send(others[s.beats % len(others)], Ask(s.last.round)))


def _lost(s: State, out: list[Action], event: Lost) -> None:
    s.lost |= {event.peer}
    propose.on_lost(s, out, event.peer)


def _found(s: State, out: list[Action], event: Found) -> None:
    s.lost -= {event.peer}
    if not s.stands and s.last.round >= 0:
        out.append(Fetch((event.peer,)))
    elif not s.stands and s.can_be_member and event.peer in s.last.voters:
        out.append(Send(event.peer, Join(s.last.round, stands=False)))


def _received(s: State, out: list[Action], event: Received) -> None:
    hearing.receive(s, out, event.sender, event.message)


EVENTS: dict[type, Callable[..., None]] = {
    Received: _received,
    Lost: _lost,
    Found: _found,
    Started: _started,
    Stepped: _stepped,
    Snapshotted: _snapshotted,
    Summed: _summed,
    Fetched: _fetched,
    Ending: _ending,
    Reform: _reform,
    Leaving: _leaving,
    Timer: _timer,
}


# -- what can be done now ----------------------------------------------------------------------------------------------


def _see_to_it(s: State, out: list[Action]) -> None:
    """All that has become possible, in whatever order things have come."""
    if s.is_out:
        return
    if s.is_member and s.stands and s.snapped is None and _is_time(s):
        s.snapped = s.step
        out.append(Snapshot(s.round))
        _hold(s, out)
    if s.pending is not None and propose.is_open(s, s.pending.ballot) and _may_vote(s, s.pending.decision):
        pending, s.pending = s.pending, None
        s.promised, s.vote = pending.ballot, Vote(pending.ballot, pending.decision)
        out.append(Send(propose.proposer(s.last, pending.ballot), Accepted(s.round, pending.ballot)))
    if s.select is not None:
        for part in s.own_parts:
            if part not in s.reducing and not _lacking(s, part):
                s.reducing |= {part}
                out.append(Reduce(s.round, s.select.ballot, part, s.select.updates))
    if s.is_voter:
        propose.see_to_it(s, out)
    if s.decided is not None and (not s.keeps_results or s.held.issuperset(s.decided.results)):
        _apply(s, out, s.decided)
        _see_to_it(s, out)


def _is_time(s: State) -> bool:
    if s.is_ending:
        return s.step > s.sent or (s.rules.fragments > 1 and s.ended < s.rules.fragments)
    return s.step - s.began >= (1 if s.rules.by_time and s.offers else s.every)


def _may_vote(s: State, decision: Decision) -> bool:
    return s.me == s.rules.witness or s.held.issuperset(decision.results)


def _lacking(s: State, part: int) -> list[str]:
    """Whose pieces of this part are not here."""
    assert s.select is not None
    ballot = s.select.ballot
    return [one.member for one in s.select.updates if s.pieces.get((ballot, one.member, part)) != one.parts[part]]


def _apply(s: State, out: list[Action], decision: Decision) -> None:
    own, was_member, snapped = s.own, s.is_member, s.snapped
    counted = next((one for one in decision.updates if one.member == s.me), None)
    kept = (*s.kept, decision)[-s.rules.kept :]
    _enter(s, decision)
    s.kept = kept
    if counted is not None:  # who comes too late offers the same work, and what it has done since, at once
        s.since = decision.round
        s.sent = snapped if snapped is not None and counted == own else s.step  # else from before a crash
        s.ended += s.is_ending and s.sent == s.step
        s.began = max(s.sent, s.step - s.every + 1)  # an update has a step of its own, however late this comes
    known = {hash for one in kept for hash in one.results}
    s.held = frozenset(hash for hash in s.held if hash in known)
    if was_member and not s.is_member:
        s.stands = False  # its leases are others' now, and with them the move is nobody's
    if own is not None and decision.anchor and own.anchor != decision.anchor:
        s.stands = False  # the others have moved from another state than this island
    if s.stands and s.me != s.rules.witness:
        out.append(Apply(decision, own, counted))
    if s.leaving and not s.is_member and s.last.voters in ((), (s.me,)):
        s.is_out = True  # there is nobody who has to know
        out.append(Out())


def _enter(s: State, decision: Decision) -> None:
    """This decision is known and acted upon; the next round begins."""
    vars(s).update(BLANK)
    s.last = decision
    s.joining -= {*decision.members} | outcome.silent(s)
    s.standing -= {*decision.voters}
    s.fetching &= {*decision.members}
    s.left &= {*decision.members, *decision.voters}
    s.heard = {name: s.heard.get(name, decision.round) for name in {*s.everybody, *s.joining}}

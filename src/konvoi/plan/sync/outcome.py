"""What a round comes to: who is a member and votes from now on, what each reads, and how long the next round is."""

from __future__ import annotations

from dataclasses import replace

from konvoi.plan.sync import leases, pace
from konvoi.plan.sync.messages import Decision, Select
from konvoi.plan.sync.state import State

REFORM = 1_000_000  # rounds that nobody else has come to meanwhile


def silent(s: State) -> set[str]:
    """Of whom nothing was heard for too many rounds; where a round may be one member's, for as many times more."""
    is_quick = s.rules.at_once or not s.rules.deadline_s
    most = s.rules.evict_after * (len(s.last.members) if is_quick else 1)
    oldest = s.round - most
    return {name for name, heard in s.heard.items() if heard < oldest}


def decision(s: State, select: Select, results: tuple[str, ...]) -> Decision:
    """Who is a member and who votes from now on, and what each is to read."""
    last, counted = s.last, {one.member: one for one in select.updates}
    gone = (silent(s) - counted.keys()) | s.left
    members = tuple(sorted({*last.members, *s.joining} - gone))
    voters = last.voters
    if not s.rules.servers:
        stay = ({*last.voters} | {*counted}) & {*members}  # newcomers from their first counted update on
        stay = stay & {*s.rules.deciders} or stay  # when the last of those has left, the others vote
        voters = tuple(sorted((stay or {*members}) | ({s.rules.witness} & {*last.voters}))) or last.voters
    every, rung = pace.following(s.rules, last, select.updates)
    lease, ahead = s.rules.samples_of(every or s.rules.every), s.rules.samples_of(s.rules.max_ahead)
    given, cursor, returned = leases.next_leases(last, members, counted, lease, ahead)
    anchor = select.updates[0].anchor if select.updates else ""
    return Decision(
        s.round,
        last.id,
        select.updates,
        select.owners,
        results,
        members,
        voters,
        given,
        cursor,
        returned,
        anchor,
        last.agreements + bool(select.updates),
        last.steps + s.every * bool(select.updates),
        every,
        rung,
    )


def alone(s: State) -> Decision:
    """What no majority has decided: this member goes on from here by itself. Its number is so far behind all others
    that whoever comes back, with whatever was decided elsewhere, finds that it has to fetch the state."""
    last, me = s.last, (s.me,)
    given, cursor, returned = leases.next_leases(last, me, {}, s.rules.samples_of(s.every), 0)
    return replace(
        last,
        round=s.round + REFORM,
        previous=last.id,
        updates=(),
        owners=(),
        results=(),
        members=me,
        voters=me,
        leases=given,
        cursor=cursor,
        returned=returned,
        anchor="",
    )

"""What a voter does whose ballot it is: choose whose updates are added up, and bring the sum to a decision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from konvoi.plan.sync import outcome
from konvoi.plan.sync.events import Action, SetTimer, to_each
from konvoi.plan.sync.messages import (
    Accepted,
    Decided,
    Decision,
    Prepare,
    Promise,
    Propose,
    Reduced,
    Refused,
    Select,
    Update,
)
from konvoi.plan.sync.state import State


def proposer(last: Decision, ballot: int) -> str:
    """Whose ballot it is, in the round behind a decision."""
    return last.voters[(last.round + 1 + ballot) % len(last.voters)]


def next_ballot(s: State) -> int:
    """The lowest above 0 that is this voter's, and above all that it knows of."""
    above = max(s.promised, s.ballot, s.seen, 0) + 1
    return next(ballot for ballot in range(above, above + len(s.last.voters)) if proposer(s.last, ballot) == s.me)


def patience(s: State) -> float:
    """Seconds until this voter tries itself: longer where others' turns come first, but for those that the wire does
    not reach."""
    before = range(max(s.promised, s.seen, 0), next_ballot(s))
    turns = (s.rules.beat_s if proposer(s.last, ballot) in s.lost else s.rules.patience_s for ballot in before)
    return sum(turns) * backoff(s)


def backoff(s: State) -> int:
    """Ballots that overtake each other are given more time."""
    return 1 << min(max(s.promised, 0) // len(s.last.voters), 2)


def set_deadline(s: State, out: list[Action]) -> None:
    """From the first offer on, or the first newcomer."""
    if s.phase in ("prepare", "select") and not s.is_timed:
        s.is_timed = True
        if not s.rules.deadline_s:
            s.is_late = True
            return
        out.append(SetTimer("deadline", s.round, s.rules.deadline_s))


def on_restarted(s: State, out: list[Action], peer: str) -> None:
    """Nobody may have missed him: what he had offered is gone, and his part of what is under way."""
    s.offers = {member: one for member, one in s.offers.items() if member != peer}
    _without(s, out, {peer})


def _without(s: State, out: list[Action], gone: Iterable[str]) -> None:
    """Begin anew where sums are under way that may have been theirs alone."""
    if s.chosen is None or {*gone}.isdisjoint(_concerned(s.chosen)):
        return
    proposed = s.proposal.results if s.phase == "propose" and s.proposal is not None else ()
    if s.phase == "reduce" or not s.held.issuperset(proposed):
        begin(s, out, next_ballot(s))


def on_lost(s: State, out: list[Action], peer: str) -> None:
    """Somebody is out of reach: his turn to propose need not be waited out, nor his part of what is under way."""
    if not s.is_voter:
        return
    _without(s, out, s.lost)
    turns = {proposer(s.last, ballot) for ballot in range(max(s.promised, s.seen, 0), next_ballot(s))}
    if not s.phase and peer in turns and (s.offers or s.promised > 0):
        out.append(SetTimer("patience", s.round, patience(s)))


def is_open(s: State, ballot: int) -> bool:
    """Whether this voter has promised nobody to leave this ballot out."""
    return ballot >= s.promised


def majority(s: State) -> int:
    return len(s.last.voters) // 2 + 1


def begin(s: State, out: list[Action], ballot: int) -> None:
    """Run a ballot above 0: hear from a majority first what may have been decided already."""
    s.ballot, s.phase, s.is_timed, s.is_late = ballot, "prepare", False, False
    s.promises, s.offers, s.reduced, s.chosen, s.proposal, s.accepted = {}, {}, {}, None, None, frozenset()
    out.append(SetTimer("patience", s.round, s.rules.patience_s * len(s.last.voters) * backoff(s)))
    set_deadline(s, out)
    out += to_each(dict.fromkeys((*s.last.voters, *s.last.members)), Prepare(s.round, ballot))


def on_promise(s: State, out: list[Action], sender: str, message: Promise) -> None:
    if message.ballot == s.ballot and s.phase == "prepare" and sender in s.last.voters:
        s.promises = {**s.promises, sender: message.vote}


def on_refused(s: State, out: list[Action], sender: str, message: Refused) -> None:
    """Somebody else's ballot is later: leave it the time that it needs."""
    if s.phase and message.ballot > max(s.ballot, s.seen) and sender in s.last.voters:
        s.seen, s.phase = message.ballot, ""
        out.append(SetTimer("patience", s.round, patience(s)))


def on_reduced(s: State, out: list[Action], sender: str, message: Reduced) -> None:
    if s.phase == "reduce" and message.ballot == s.ballot:
        s.reduced = {**s.reduced, message.part: message.hash}


def on_accepted(s: State, out: list[Action], sender: str, message: Accepted) -> None:
    if s.phase == "propose" and message.ballot == s.ballot and sender in s.last.voters:
        was_first = not s.accepted
        s.accepted |= {sender}
        if was_first and s.rules.witness in s.last.voters:
            _ask_for_votes(s, out)


def see_to_it(s: State, out: list[Action]) -> None:
    """The next phase, where this one is complete."""
    if s.phase == "" and s.promised < 0 and proposer(s.last, 0) == s.me:
        # Nobody can have voted in a ballot before this one. It is promised, so that it is not run again after a crash.
        s.promised, s.ballot, s.phase = 0, 0, "select"
    if s.phase == "prepare" and len(s.promises) >= majority(s):
        votes = [vote for vote in s.promises.values() if vote is not None]
        if votes:
            _propose(s, out, max(votes, key=lambda vote: vote.ballot).decision)
        else:
            s.phase = "select"
    if s.phase == "select" and _may_select(s):
        s.chosen = select = _select(s)
        s.phase = "reduce"
        out += to_each(_concerned(select), select)
        if not select.updates:
            _propose(s, out, outcome.decision(s, select, ()))
    if s.phase == "reduce" and len(s.reduced) == s.rules.num_parts and s.chosen is not None:
        _propose(s, out, outcome.decision(s, s.chosen, tuple(s.reduced[part] for part in range(s.rules.num_parts))))
    if s.phase == "propose" and len(s.accepted) >= majority(s) and s.proposal is not None:
        s.phase, s.decided = "", s.proposal
        told = dict.fromkeys((*s.last.members, *s.last.voters, *s.proposal.members))
        out += to_each((peer for peer in told if peer != s.me), Decided(s.proposal))


def _awaited(s: State) -> set[str]:
    present = {*s.last.members} - s.left
    if s.rules.servers or s.rules.deciders:
        return present  # who decides is not who is there
    return present & {*s.last.voters, *s.standing, *(one.member for one in s.last.updates)}


def _may_select(s: State) -> bool:
    """All that are waited for have offered; or it is late, and enough have. Newcomers and leavers alone are a reason
    for a round, too, in which nothing is added up."""
    offers = _offers(s)
    if not offers and not s.joining and not s.left:
        return False
    present, awaited = {*s.last.members} - s.left, _awaited(s)
    is_enough = len(offers) >= _enough(s, awaited)
    missing = awaited - s.lost - s.fetching - offers.keys()
    if is_enough and not missing:
        return True
    if s.ballot == 0 and any(_is_stale(s, member) for member in missing):  # a later ballot waits no more
        return False
    if not offers and (s.joining - present - outcome.silent(s) or s.left & {*s.last.members}):
        return s.is_late or not present
    return s.is_late and is_enough


def _offers(s: State) -> dict[str, Update]:
    """But for those of who has left and is out of reach: nobody gets their pieces any more."""
    return {member: one for member, one in s.offers.items() if member not in s.left or member not in s.lost}


def _is_stale(s: State, member: str) -> bool:
    """Whether too many decisions have been taken without this member's work, as far as is known here."""
    if not s.rules.max_staleness:
        return False
    began = next((one.round - (n == 0) for n, one in enumerate(s.kept) if member in one.members), s.last.round)
    counted = (one.round for one in s.kept if any(update.member == member for update in one.updates))
    return s.rules.max_staleness <= s.last.round - max(counted, default=began)


def _enough(s: State, awaited: set[str]) -> int:
    """Updates: of all that are awaited; where some decide alone, of those that they reach."""
    if s.rules.deciders:
        awaited = awaited - s.lost
    return max(1, math.ceil(s.rules.quorum * len(awaited)))


def _select(s: State) -> Select:
    offers = [one for member, one in sorted(_offers(s).items()) if member in s.last.members]
    reached = [one for one in offers if one.member not in s.lost]  # the others' pieces would not come
    offers = reached if len(reached) >= _enough(s, _awaited(s)) else offers
    (anchor, _), *_ = Counter(one.anchor for one in offers).most_common(1) or [("", 0)]
    updates = tuple(one for one in offers if one.anchor == anchor)  # what moved from elsewhere cannot be added up
    if s.rules.at_once:
        updates = tuple(sorted(updates, key=lambda one: (one.since, one.member))[: s.rules.at_once])
    owners = s.rules.servers or tuple(one.member for one in updates)
    if s.ballot >= len(s.last.voters) and updates and (s.me in s.last.members or s.me in s.rules.servers):
        owners = (s.me,)  # some may not reach each other, but whoever has offered reaches this island
    return Select(s.round, s.ballot, updates, owners)


def _concerned(select: Select) -> list[str]:
    return list(dict.fromkeys((*select.owners, *(one.member for one in select.updates))))


def _propose(s: State, out: list[Action], value: Decision) -> None:
    s.phase, s.proposal, s.accepted = "propose", value, frozenset()
    _ask_for_votes(s, out)


def _ask_for_votes(s: State, out: list[Action]) -> None:
    """Of those who have not voted; the witness comes last. It binds whoever proposes next, and holds no sums: somebody
    who does must have them on disk by then."""
    assert s.proposal is not None
    asked = (one for one in s.last.voters if one not in s.accepted and (one != s.rules.witness or s.accepted))
    out += to_each(asked, Propose(s.round, s.ballot, s.proposal))


def remind(s: State, out: list[Action]) -> None:
    """Say again what was not answered."""
    if s.phase == "prepare" or (s.phase == "select" and s.ballot > 0):  # who has promised may have work to offer
        heard = s.promises.keys() if s.phase == "prepare" else s.offers.keys()
        others = dict.fromkeys((*s.last.voters, *s.last.members))
        out += to_each((peer for peer in others if peer not in heard), Prepare(s.round, s.ballot))
    elif s.phase == "reduce" and s.chosen is not None:
        out += to_each(_concerned(s.chosen), s.chosen)
    elif s.phase == "propose":
        _ask_for_votes(s, out)

"""What an island does when another says something."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from konvoi.plan.sync import leases, propose
from konvoi.plan.sync.events import Action, Fetch, Out, Send, SetTimer
from konvoi.plan.sync.messages import (
    Accepted,
    Ask,
    Decided,
    Decision,
    Join,
    Leave,
    Offer,
    Piece,
    Prepare,
    Promise,
    Propose,
    Reduced,
    Refused,
    Result,
    Select,
    Want,
)
from konvoi.plan.sync.state import State

MOST_ASKED = 3  # times for decisions in between, in a round; then the whole state is fetched


def receive(s: State, out: list[Action], sender: str, message: Any) -> None:
    if s.heard.get(sender) != s.last.round:
        s.heard = {**s.heard, sender: s.last.round}
    if s.leaving and not s.is_member and sender in s.last.voters and message.round >= s.last.round and not s.is_out:
        s.is_out = True  # the others go on without this island
        out += [Send(sender, Ask(s.last.round)), Out()]  # and the sender may be waiting for a word, too
        return
    kind = type(message)
    if kind in OF_ANY_ROUND:
        OF_ANY_ROUND[kind](s, out, sender, message)
    elif message.round <= s.last.round:
        _tell(s, out, sender, message.round)
    elif message.round > s.round:
        out.append(Send(sender, Ask(s.last.round)))
    else:
        MESSAGES[kind](s, out, sender, message)


def _on_guest(s: State, out: list[Action], sender: str, message: Ask | Join | Leave) -> None:
    if isinstance(message, Leave):
        s.left |= {sender} & {*s.everybody}
        s.joining -= {sender}
        propose.set_deadline(s, out)
        if sender not in s.everybody and message.round <= s.last.round:
            out.append(Send(sender, Ask(s.last.round)))  # it is known here, and it may go
    elif isinstance(message, Join):
        if sender not in s.last.members:
            s.joining |= {sender}
            propose.set_deadline(s, out)
        s.left -= {sender}
        if message.stands:
            s.standing |= {sender}
            s.fetching -= {sender}
        else:
            s.fetching |= {sender} & {*s.last.members}
            propose.on_restarted(s, out, sender)
    else:
        out += [Send(sender, Result(s.round, hash)) for hash in dict.fromkeys(message.wants) if hash in s.held]
    _tell(s, out, sender, message.round + 1)


def _tell(s: State, out: list[Action], peer: str, round: int) -> None:
    """What was decided in this round, to somebody who does not know; the newest, where that was long ago."""
    if round <= s.last.round:
        known = next((one for one in s.kept if one.round == round), s.last)
        out.append(Send(peer, Decided(known)))


def _on_decided(s: State, out: list[Action], sender: str, message: Decided) -> None:
    decision = message.decision
    if decision.round == s.round and decision.previous == s.last.id:
        if s.decided is None:
            s.decided = decision
            if s.select is None:  # else they are on their way
                ask_for_results(s, out, decision, first=sender)
    elif decision.round > s.round and s.me == s.rules.witness:
        s.decided = decision  # it has nothing that the ones in between would change
    elif decision.round > s.round:
        s.asked_on += 1
        if s.stands and decision.round - s.round < s.rules.kept and s.asked_on <= MOST_ASKED:
            out.append(Send(sender, Ask(s.last.round)))  # it has overtaken another, which the sender still has
            return
        s.stands = False  # too far behind to follow step by step
        out.append(Fetch((sender,)))


def _on_result(s: State, out: list[Action], sender: str, message: Result) -> None:
    s.held |= {message.hash}


def _on_offer(s: State, out: list[Action], sender: str, message: Offer) -> None:
    update = message.update
    if not s.is_voter or update.member != sender or update.base != s.last.round:
        return
    least = 1 if s.rules.fragments == 1 else 0  # at the end the last fragments' rounds have no steps of their own
    if sender not in s.last.members or not least <= update.samples <= leases.size(s.last.lease_of(sender)):
        return
    if len(update.parts) != s.rules.num_parts or not update.weight >= 0 or not 0 <= update.since <= update.base:
        return
    if not s.offers and s.promised <= 0 and s.ballot <= 0:
        out.append(SetTimer("patience", s.round, propose.patience(s)))
    propose.set_deadline(s, out)
    s.offers = {**s.offers, sender: update}
    s.fetching -= {sender}


def _on_select(s: State, out: list[Action], sender: str, message: Select) -> None:
    if sender != propose.proposer(s.last, message.ballot) or (s.select and message.ballot <= s.select.ballot):
        return
    s.select, s.reducing, s.sums = message, frozenset(), {}
    s.pieces = {key: hash for key, hash in s.pieces.items() if key[0] >= message.ballot}  # some come before it
    if s.own in message.updates:
        _send_pieces(s, out, range(s.rules.num_parts))


def _send_pieces(s: State, out: list[Action], parts: Iterable[int]) -> None:
    own, select = s.own, s.select
    if own is not None and select is not None:
        out += [Send(select.owner(part), Piece(s.round, select.ballot, s.me, part, own.parts[part])) for part in parts]


def _on_piece(s: State, out: list[Action], sender: str, message: Piece) -> None:
    if message.member == sender and (s.select is None or message.ballot >= s.select.ballot):
        s.pieces = {**s.pieces, (message.ballot, sender, message.part): message.hash}


def _on_want(s: State, out: list[Action], sender: str, message: Want) -> None:
    if s.select and message.ballot == s.select.ballot and s.own in s.select.updates:
        wanted = {*message.parts} & {*range(s.rules.num_parts)}
        _send_pieces(s, out, sorted(part for part in wanted if s.select.owner(part) == sender))


def _on_prepare(s: State, out: list[Action], sender: str, message: Prepare) -> None:
    if sender != propose.proposer(s.last, message.ballot):
        return
    if s.own is not None:
        out.append(Send(sender, Offer(s.round, s.own)))
    if s.is_voter and propose.is_open(s, message.ballot):
        if message.ballot > s.promised:
            s.promised = message.ballot
            if sender != s.me:
                out.append(SetTimer("patience", s.round, propose.patience(s)))
        out.append(Send(sender, Promise(s.round, message.ballot, s.vote)))
    elif s.is_voter:
        out.append(Send(sender, Refused(s.round, s.promised)))


def _on_propose(s: State, out: list[Action], sender: str, message: Propose) -> None:
    if sender != propose.proposer(s.last, message.ballot) or message.decision.previous != s.last.id:
        return
    if s.is_voter and propose.is_open(s, message.ballot):
        s.pending = message
    elif s.is_voter:
        out.append(Send(sender, Refused(s.round, s.promised)))


def ask_for_results(s: State, out: list[Action], decision: Decision, first: str = "") -> None:
    lacking = tuple(hash for hash in decision.results if hash not in s.held)
    who = [peer for peer in dict.fromkeys((*decision.owners, *s.last.members)) if peer != s.me]
    if lacking and who and s.me != s.rules.witness:
        out.append(Send(first if first in who else who[s.beats % len(who)], Ask(s.last.round, lacking)))


OF_ANY_ROUND: dict[type, Callable[..., None]] = {
    Ask: _on_guest,
    Join: _on_guest,
    Leave: _on_guest,
    Decided: _on_decided,
    Result: _on_result,
}

MESSAGES: dict[type, Callable[..., None]] = {
    Offer: _on_offer,
    Select: _on_select,
    Piece: _on_piece,
    Want: _on_want,
    Prepare: _on_prepare,
    Propose: _on_propose,
    Promise: propose.on_promise,
    Refused: propose.on_refused,
    Reduced: propose.on_reduced,
    Accepted: propose.on_accepted,
}

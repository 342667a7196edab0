"""The rounds of a federation, as its server sees them: a pure machine, `advance(state, event) -> (state, actions)`.

Sites ask and answer; the server never calls them. It asks a cohort of those who are there for their work, and when
enough has come it decides. A decision is in the server's log before anybody hears of it, so that it can be killed at
any moment: it comes back with what the log says, and asks again for the round that was under way. A site's answer is
to a base, the hash of the weights that it began with: what was asked for twice counts once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from konvoi.plan.sync.serving import (
    Action,
    AddUp,
    Asked,
    Came,
    Counted,
    Event,
    Gone,
    Looked,
    Made,
    Over,
    Present,
    Refuse,
    Terms,
    Update,
    Write,
)
from konvoi.plan.sync.state import copied

REMEMBERED = 64  # bases of which updates are still taken, where nobody waits


@dataclass
class State:
    """Handed from event to event, and copied before it is changed; what it holds is never changed."""

    terms: Terms
    base: str  # hash of the newest weights
    round: int = 1  # that is to be decided
    attempt: int = -1  # of the round: how often a cohort was asked before
    cohort: tuple[str, ...] = ()  # asked in this round; () where nobody is, yet
    asked_at: float = 0.0
    first_at: float = math.inf  # when the first update of the round came
    seen: Mapping[str, float] = field(default_factory=dict)  # when each site asked last
    holding: frozenset[str] = frozenset()  # sites whose update waits there for a person
    came: Mapping[str, Counted] = field(default_factory=dict)  # this round's updates by site
    last: Mapping[str, Update] = field(default_factory=dict)  # of each site what counted last
    bases: tuple[str, ...] = ()  # the newest is the last
    adding_up: tuple[Counted, ...] = ()
    begun: bool = False
    awaits: int = 1  # sites that have to be there before it begins, or goes on
    back_at: float = math.inf  # when the server was back, and has heard of nobody yet

    @property
    def is_over(self) -> bool:
        return self.round > self.terms.rounds

    def wants(self, site: str) -> bool:
        """Whether this site is to train on the newest weights."""
        if self.is_over or not self.begun:
            return False
        if self.terms.at_once:
            return site not in self.came
        return site in self.cohort and site not in self.came and not self.adding_up


def restart(terms: Terms, first_base: str, log: tuple[Write, ...]) -> State:
    """What a server comes back with. The round under way is asked for again, when as many are there as have counted in
    the last one, or have had the time to come."""
    last: dict[str, Update] = {}
    for one in log:
        last.update({counted.update.site: counted.update for counted in one.updates})
    bases = (first_base, *(one.result for one in log))
    awaits = len(log[-1].updates) if log else max(terms.first, terms.least)
    return State(terms, bases[-1], len(log) + 1, last=last, bases=bases[-REMEMBERED:], awaits=awaits)


def advance(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """What follows from an event. The state that is given stays as it is."""
    s = copied(state)
    out: list[Action] = []
    EVENTS[type(event)](s, out, event)
    now = getattr(event, "now", None)
    if now is not None and not s.is_over and not s.adding_up:
        _see_to_it(s, out, now)
    return s, tuple(out)


def _present(s: State, out: list[Action], event: Present) -> None:
    s.seen = {**s.seen, event.site: event.now}
    s.holding = s.holding | {event.site} if event.holds else s.holding - {event.site}


def _came(s: State, out: list[Action], event: Came) -> None:
    update = event.update
    s.seen = {**s.seen, update.site: event.now}
    if (why := why_not(s, update)) is not None:
        out.append(Refuse(update, why))
        return
    staleness = len(s.bases) - 1 - s.bases.index(update.base) if s.terms.at_once else 0
    s.came = {**s.came, update.site: Counted(update, staleness)}
    s.first_at = min(s.first_at, event.now)


def why_not(s: State, update: Update) -> str | None:
    """Why an update is not taken; None where it is. One that is here already is no mistake: its answer may be lost."""
    terms, known, last = s.terms, s.came.get(update.site), s.last.get(update.site)
    if s.is_over:
        return "the run is over"
    if last is not None and last.hash == update.hash:
        return "it has been counted already"
    if not 0 <= update.weight < math.inf:
        return "its weight is no number from 0"
    if terms.at_once:
        if update.base not in s.bases:
            return "it began with weights that nobody remembers"
        if last is not None and last.base in s.bases and s.bases.index(last.base) >= s.bases.index(update.base):
            return "a later one of this site has been counted already"
        late = len(s.bases) - 1 - s.bases.index(update.base)
        if terms.max_staleness and late > terms.max_staleness:
            return f"it is {late} rounds late"
    elif update.base != s.base:
        return "its round is decided"
    elif update.site not in s.cohort:
        return "this site is not of the round's cohort"
    elif s.adding_up:
        return "its round is decided"
    if known is not None and known.update.hash != update.hash:
        return "another update of this site is here"
    return None


def _gone(s: State, out: list[Action], event: Gone) -> None:
    s.seen = {site: at for site, at in s.seen.items() if site != event.site}
    s.came = {site: one for site, one in s.came.items() if site != event.site}
    s.cohort = tuple(site for site in s.cohort if site != event.site)


def _looked(s: State, out: list[Action], event: Looked) -> None:
    """What time has made possible is seen to behind every event."""


def _made(s: State, out: list[Action], event: Made) -> None:
    if event.round != s.round or not s.adding_up:
        return
    out.append(Write(s.round, s.base, event.result, s.adding_up))
    counted = {one.update.site: one.update for one in s.adding_up}
    s.last = {**s.last, **counted}
    s.came = {site: one for site, one in s.came.items() if one not in s.adding_up}
    s.base, s.bases = event.result, (*s.bases, event.result)[-REMEMBERED:]
    s.round, s.attempt, s.cohort, s.adding_up, s.first_at = s.round + 1, -1, (), (), math.inf
    if s.came:  # where nobody waits: they wait for the next round, a round staler
        s.came = {site: Counted(one.update, one.staleness + 1) for site, one in s.came.items()}
        s.first_at = event.now
    if s.is_over:
        out.append(Over())


EVENTS: dict[type, Callable[..., None]] = {
    Present: _present,
    Came: _came,
    Gone: _gone,
    Looked: _looked,
    Made: _made,
}


def _see_to_it(s: State, out: list[Action], now: float) -> None:
    """Begin, ask, decide, or ask others: whatever has become possible."""
    terms = s.terms
    here = sorted(site for site, at in s.seen.items() if now - at <= terms.away_s)
    s.back_at = min(s.back_at, now)
    is_late = s.round > 1 and now - s.back_at >= terms.patience_s
    s.begun = s.begun or len(here) >= s.awaits or is_late
    if not s.begun:
        return
    if terms.at_once:
        if len(s.came) >= terms.at_once:
            _decide(s, out)
        return
    if s.cohort and _is_enough(s, here, now):
        _decide(s, out)
    elif not s.cohort or now - s.asked_at > terms.patience_s:
        _ask(s, out, here, now)


def _is_enough(s: State, here: list[str], now: float) -> bool:
    number, terms = len(s.came), s.terms
    if number < max(terms.least, math.ceil(terms.quorum * len(s.cohort))):
        return False
    awaited = {*s.cohort} & {*here} - s.came.keys()
    if awaited & s.holding and now - s.asked_at <= terms.patience_s:
        return False  # people are slower than the deadline, which is for machines
    return not awaited or now - s.first_at >= terms.deadline_s


def _decide(s: State, out: list[Action]) -> None:
    """In an order that does not hang on who was quick."""
    updates = sorted(s.came.values(), key=lambda one: (-one.staleness, one.update.site))
    s.adding_up = tuple(updates[: s.terms.at_once or None])
    out.append(AddUp(s.round, s.base, s.adding_up))


def _ask(s: State, out: list[Action], here: list[str], now: float) -> None:
    """Draw a cohort among those who are there. Who has answered already for these weights stays in it."""
    terms = s.terms
    if len(here) < terms.least:
        return
    s.attempt += 1
    size = min(terms.cohort or len(here), len(here))
    draw = random.Random(f"{terms.seed} {s.round} {s.attempt}")
    answered = [site for site in here if site in s.came]
    others = [site for site in here if site not in s.came]
    chosen = sorted((answered + draw.sample(others, len(others)))[: max(size, len(answered))])
    s.cohort, s.asked_at = tuple(chosen), now
    out.append(Asked(s.round, s.attempt, s.cohort))

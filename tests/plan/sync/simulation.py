"""Convoys of the real machine under a virtual clock, on a network and hosts that fail as a seed says.

What must always hold is checked at every step, not at the end. A run is a function of its scenario: the same one gives
the same trace.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from konvoi.plan.sync import events as ev
from konvoi.plan.sync import leases
from konvoi.plan.sync import state as st
from konvoi.plan.sync.messages import Accepted, Decision, Promise, Propose, Range, Select, Update
from konvoi.plan.sync.round import advance

QUIET_AT, ENDING_AT, END = 26.0, 46.0, 60.0  # faults come before the first; at the second all must have met again
LEASE = 12  # of sixty steps
RULES = st.Rules(
    every=60, num_parts=2, lease=LEASE, quorum=0.5, deadline_s=1.5, patience_s=2.5, beat_s=1.0, max_ahead=200, kept=4
)


class Violation(AssertionError):
    """Something happened that never may."""


@dataclass(frozen=True)
class Fault:
    kind: str  # "partition", "one-way", "crash", "clock", "join", "leave"
    at: float
    who: tuple[str, ...]
    seconds: float = 0.0
    when: str = ""  # "vote": as soon as somebody proposes; "voted": as soon as `who` has voted; "write": and loses that


OTHERS = {"all": (), "server": ("s",), "servers": ("s", "t", "u"), "witness": ("w",)}
OTHERS |= {"async": (), "async server": ("s",)}
ASYNC = {"quorum": 0.0, "deadline_s": 0.0}


@dataclass(frozen=True)
class Scenario:
    seed: int
    family: str  # one of OTHERS
    names: tuple[str, ...]
    loss: float
    twice: float
    delay: float
    faults: tuple[Fault, ...]


def scenario(seed: int) -> Scenario:
    r = random.Random(seed)
    family = r.choice(("all", "all", "all", "server", "servers", "witness"))
    names = tuple("abcde"[: r.randint(2, 5) if family == "all" else r.randint(2, 3)])
    if family in ("all", "server") and seed % 3 == 2:
        family = {"all": "async", "server": "async server"}[family]
    everyone = names + OTHERS[family]
    faults = []

    def at() -> float:
        return r.uniform(1.0, QUIET_AT - 7)

    for number in range(r.randint(1, 2)):
        group = tuple(r.sample(everyone, r.randint(1, len(everyone) - 1)))
        faults.append(
            Fault("partition", at(), group, r.uniform(1, 7), "vote" if number == 0 and r.random() < 0.5 else "")
        )
    faults += [Fault("one-way", at(), tuple(r.sample(everyone, 2)), r.uniform(1, 7)) for _ in range(r.randint(1, 2))]
    faults += [
        Fault("crash", at(), (r.choice(everyone),), r.uniform(0.5, 5), when)
        for when in ("write", "write", r.choice(("voted", "")), "")
    ]
    faults += [Fault("clock", at(), (r.choice(everyone),), r.choice((-600.0, 600.0))) for _ in range(r.randint(1, 2))]
    faults.append(Fault("join", at(), ("n",)))
    if r.random() < 0.5 and len(names) > 2:
        faults.append(Fault("leave", at(), (r.choice(names),)))
    faults.sort(key=lambda fault: fault.at)
    return Scenario(
        seed, family, names, r.choice((0.0, 0.02, 0.1)), r.choice((0.0, 0.05)), r.choice((0.05, 0.4)), tuple(faults)
    )


def digest(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


@dataclass
class Host:
    """An island's process, model and disk."""

    name: str
    state: st.State
    disk: st.Durable
    speed: float  # seconds for ten steps
    alive: bool = True
    life: int = 0  # timers of an earlier one are nobody's
    steps: int = 0
    holds: bool = False
    model: tuple[int, str] = (0, "anchor")  # round, what the weights are
    snapshots: int = 0
    asked: int | None = None  # the round of a snapshot that waits for the end of a step
    moved: tuple[int, ...] = ()  # positions whose work is in the parameters and in no anchor
    fetching: tuple[str, ...] = ()  # from whom
    sums: frozenset[str] = frozenset()  # on disk
    traps: tuple[tuple[str, float], ...] = ()  # crashes that wait for their moment, and how long they last
    timers: dict[str, int] = field(default_factory=dict)  # the newest of each name


class World:
    def __init__(self, given: Scenario, *, traced: bool = False, rules: st.Rules = RULES, ends: bool = True) -> None:
        self.given, self.random, self.traced = given, random.Random(given.seed + 10**9), traced
        self.now, self.count = 0.0, 0
        self.queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.trace: list[str] = []
        self.seen: Counter[str] = Counter()
        self.cuts: dict[tuple[str, str], float] = {}  # from whom to whom, and until when
        self.at_vote = [fault for fault in given.faults if fault.when == "vote"]
        self.keeps = 0.5  # whether a member that is restarted still has its model
        # What is known of the truth.
        self.decisions: dict[int, Decision] = {}
        self.votes: dict[tuple[int, str], dict[int, set[str]]] = {}  # on disks, by round and decision, and ballot
        self.made: dict[tuple[str, ...], tuple[int, ...]] = {}  # whose work is in an update, by its parts
        self.chosen: dict[int, str] = {}  # by round, what a majority has on disk for a ballot
        self.proposed: dict[tuple[int, int], str] = {}  # by round and ballot
        self.promised: dict[tuple[str, int], int] = {}  # by host and round
        self.sound: set[str] = set()  # decisions whose sums were looked at
        self.counted: set[Update] = set()
        self.read: set[int] = set()  # positions of counted updates
        self.anchors: dict[int, str] = {0: "anchor"}
        names = given.names
        voters = names
        if given.family.startswith("async"):
            rules = replace(rules, **ASYNC, at_once=given.seed // 9 % 2, max_staleness=given.seed // 3 % 3)
        if "server" in given.family:
            voters = OTHERS[given.family]
            rules = replace(rules, servers=voters)
        elif given.family == "witness":
            rules, voters = replace(rules, witness="w"), (*names, "w")
        if given.family == "all" and given.seed % 7 == 5:
            voters = names[: 1 + given.seed // 7 % 2]
            rules = replace(rules, deciders=voters)
        if given.family in ("all", "witness"):
            rules = replace(rules, by_time=rules.by_time or (given.seed % 2 == 1 and not rules.deciders))
        if given.seed % 5 == 3:
            rules = replace(rules, max_comm_fraction=0.3, rungs=(1, 2, 4))
        self.rules = rules
        first = Decision.first(names, tuple(sorted(voters)), LEASE)
        self.decisions[0] = first
        self.hosts: dict[str, Host] = {}
        for name in dict.fromkeys((*names, *voters)):
            self.add(name, st.State(name, rules, first), stands=True)
        for fault in given.faults:
            if fault.when != "vote":
                self.push(fault.at, World.fault, fault)
        if ends:
            self.push(ENDING_AT, World.end)
        if given.seed % 4 == 1:  # the others have wires that say nothing
            self.push(1.0, World.hint)

    def add(self, name: str, state: st.State, *, stands: bool) -> None:
        host = self.hosts[name] = Host(name, state, state.durable(), self.random.uniform(0.25, 0.6))
        self.push(self.now, World.own, host, 0, ev.Started(stands))
        if state.can_be_member:
            self.push(self.now + 0.1, World.step, host, 0)

    def push(self, at: float, call: Callable[..., None], *what: object) -> None:
        """A function of the class: a bound one would hold the world, and the world it."""
        self.count += 1
        heapq.heappush(self.queue, (at, self.count, call, what))

    def say(self, line: str) -> None:
        if self.traced:
            self.trace.append(f"{self.now:7.2f}  {line}")

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        queue = self.queue
        while queue and queue[0][0] <= END:
            self.now, _, call, what = heapq.heappop(queue)
            call(self, *what)
        self.check_ended()
        return self.seen

    def arrive(self, host: Host, event: ev.Received) -> None:
        if host.alive and not self.is_cut(event.sender, host.name):
            self.happen(host, event)

    def own(self, host: Host, life: int, event: ev.Event) -> None:
        """What a process hears of itself."""
        if host.alive and life == host.life:
            self.happen(host, event)

    def ring(self, host: Host, life: int, timer: ev.Timer, key: int) -> None:
        if host.alive and life == host.life and host.timers.get(timer.name) == key:  # else another has its place
            del host.timers[timer.name]
            self.happen(host, timer)

    def happen(self, host: Host, event: ev.Event) -> None:
        if self.traced and not isinstance(event, ev.Stepped):
            self.say(f"{host.name} <- {_short(event)}")
        host.state, actions = advance(host.state, event)
        for action in actions:
            if isinstance(action, ev.Send):
                self.send(host.name, action)
            elif not self.act(host, action):
                return  # crashed

    def act(self, host: Host, action: ev.Action) -> bool:
        if isinstance(action, ev.Persist):
            return self.write(host, action.durable)
        if isinstance(action, ev.SetTimer):
            key = host.timers[action.name] = self.count
            timer = ev.Timer(action.name, action.round)
            self.push(self.now + action.seconds, World.ring, host, host.life, timer, key)
        elif isinstance(action, ev.Snapshot):
            host.asked = action.round
            if host.holds or host.state.is_ending or self.random.random() < 0.5:  # else a step is under way
                self.snapshot(host)
        elif isinstance(action, ev.Reduce):
            hash = summed(host.name, action.part, action.updates)
            event = ev.Summed(action.round, action.ballot, action.part, hash)
            self.push(self.now + 0.05, World.own, host, host.life, event)
        elif isinstance(action, ev.Apply):
            self.check_apply(host, action)
            host.holds = False
        elif isinstance(action, ev.Fetch):
            if not host.fetching:
                self.push(self.now + self.random.uniform(0.3, 2.0), World.fetch, host, host.life, 0)
            host.fetching = action.peers
        elif isinstance(action, ev.Hold):
            host.holds = True
        elif isinstance(action, ev.Out):
            self.say(f"{host.name} is out")
            host.alive, host.life = False, host.life + 1
            return False
        return True

    def snapshot(self, host: Host) -> None:
        round, host.asked = host.asked, None
        if round != host.state.round:
            return  # it has been decided without this host
        host.snapshots += 1
        parts = tuple(digest(host.name, round, host.snapshots, host.life, part) for part in range(RULES.num_parts))
        self.made[parts] = host.moved
        cost = 30 * self.random.random() if self.rules.max_comm_fraction else 0.0  # in steps
        number = len(host.moved)
        event = ev.Snapshotted(round, host.steps, number, float(number), parts, host.model[1], cost)
        self.push(self.now + 0.05, World.own, host, host.life, event)

    def step(self, host: Host, life: int) -> None:
        if host.alive and life == host.life:
            if not host.holds and not host.state.is_ending and self.read_on(host):
                host.steps += 10
                self.happen(host, ev.Stepped(host.steps))
            if host.asked is not None:
                self.snapshot(host)
            if host.alive:
                self.push(self.now + host.speed, World.step, host, life)

    def end(self) -> None:
        """All have taken their last steps. They agree on what is left, and leave."""
        if self.now == ENDING_AT:
            self.check_alive()
        for host in self.hosts.values():
            state = host.state
            if host.alive and state.can_be_member and state.stands and not state.is_ending and self.now == ENDING_AT:
                self.happen(host, ev.Ending())
            elif host.alive and state.is_ending and state.snapped is None and not state.leaving:
                self.happen(host, ev.Leaving())
        self.push(self.now + 1.0, World.end)

    def read_on(self, host: Host) -> bool:
        """Ten steps' samples: the next of the lease. Whether it has so many."""
        if host.state.stands and host.state.is_member:
            ours, number = positions(host.state.last.lease_of(host.name)), len(host.moved) + LEASE // 6
            if len(ours) < number:
                return False
            host.moved = ours[:number]
        return True

    def send(self, sender: str, action: ev.Send) -> None:
        self.check_told(sender, action.message)
        is_due = self.at_vote and self.at_vote[0].at <= self.now < QUIET_AT - 5
        if is_due and isinstance(action.message, Propose):
            self.seen["partition during a vote"] += 1
            self.fault(replace(self.at_vote.pop(), when=""))
        host = self.hosts.get(action.to)
        if host is None:
            return
        copies, longer, random = 1, 0.1, self.random
        if self.now < QUIET_AT:
            longer = 1.0
            if random.random() < self.given.loss:
                self.seen["loss"] += 1
                return
            if random.random() < self.given.twice:
                self.seen["duplication"] += 1
                copies = 2
        event = ev.Received(sender, action.message)
        for number in range(copies):
            seconds = 0.02 + random.expovariate(1 / self.given.delay) * longer
            if seconds > 0.3:
                self.seen["delay"] += 1
            if number or seconds > 0.5:
                self.seen["reordering"] += 1  # others, sent later, come before it
            self.push(self.now + seconds, World.arrive, host, event)

    def cut(self, sender: str, to: str, until: float) -> None:
        self.cuts[sender, to] = max(until, self.cuts.get((sender, to), 0.0))

    def is_cut(self, sender: str, to: str) -> bool:
        return self.cuts.get((sender, to), 0.0) > self.now

    # -- faults ----------------------------------------------------------------------------------------------------

    def fault(self, fault: Fault) -> None:
        who = [self.hosts[name] for name in fault.who if name in self.hosts]
        self.say(f"-- {fault.kind} {' '.join(fault.who)} {fault.when} for {fault.seconds:.1f} s")
        self.seen[fault.kind] += 1
        until = min(self.now + abs(fault.seconds), QUIET_AT)
        if fault.kind == "partition":
            inside, outside = set(fault.who), set(self.hosts) - set(fault.who)
            for one in inside:
                for other in outside:
                    self.cut(one, other, until)
                    self.cut(other, one, until)
        elif fault.kind == "one-way":
            self.cut(*fault.who, until)
        elif fault.kind == "crash":
            for host in who:
                if fault.when:
                    host.traps = (*host.traps, (fault.when, fault.seconds))
                else:
                    self.crash(host, fault.seconds)
        elif fault.kind == "clock":
            for host in who:
                self.jump(host, fault.seconds)
        elif fault.kind == "join":
            self.seen["roster change"] += 1
            contacts = self.rules.servers or tuple(sorted(self.given.names))
            blank = Decision.unknown(contacts)
            self.add(fault.who[0], st.State(fault.who[0], self.rules, blank, stands=False), stands=False)
            self.hosts[fault.who[0]].model = (-2, "")
        elif fault.kind == "leave":
            self.seen["roster change"] += 1
            for host in who:
                if host.alive and self.given.seed % 2:
                    self.happen(host, ev.Ending())
                if host.alive:
                    self.happen(host, ev.Leaving())

    def jump(self, host: Host, seconds: float) -> None:
        """Ten minutes forth: every timer that waits is over. Back: none is later for it, as what counts is the wait."""
        if seconds > 0 and host.alive:
            for what in [what for _, _, call, what in self.queue if call is World.ring and what[0] is host]:
                self.push(self.now, World.ring, *what)

    def crash(self, host: Host, seconds: float) -> None:
        if host.alive:
            host.alive, host.life = False, host.life + 1
            self.say(f"-- {host.name} is dead")
            self.push(min(self.now + seconds, QUIET_AT), World.restart, host)

    def hint(self) -> None:
        """What a wire says of its peers: mostly true, and late; sometimes neither."""
        for name, host in self.hosts.items():
            for other in self.hosts:
                if host.alive and other != name and self.random.random() < 0.5:
                    is_gone = not self.hosts[other].alive or self.is_cut(other, name) or self.is_cut(name, other)
                    is_said = is_gone != (self.random.random() < 0.05 and self.now < QUIET_AT)
                    if is_said != (other in host.state.lost):
                        self.seen["hint"] += 1
                        self.happen(host, (ev.Lost if is_said else ev.Found)(other))
        self.push(self.now + 2.0, World.hint)

    def restart(self, host: Host) -> None:
        host.alive, host.holds, host.steps, host.moved, host.fetching = True, False, 0, (), ()
        host.asked = None
        host.timers.clear()
        disk = host.disk
        rounds = range(disk.last.round - RULES.kept + 1, disk.last.round + 1)
        kept = tuple(
            self.decisions[r] for r in rounds if r in self.decisions and {*self.decisions[r].results} <= host.sums
        )
        has_model = disk.last.round >= 0 and (self.random.random() < self.keeps or not host.state.can_be_member)
        host.model = (disk.last.round, self.anchors.get(disk.last.round, "")) if has_model else (-2, "")
        host.state = st.State(host.name, self.rules, disk.last, disk.promised, disk.vote, held=host.sums, kept=kept)
        self.say(f"-- {host.name} is back at round {disk.last.round}")
        self.push(self.now, World.own, host, host.life, ev.Started(has_model))
        if host.state.can_be_member:
            self.push(self.now + 0.1, World.step, host, host.life)

    def fetch(self, host: Host, life: int, tries: int) -> None:
        if not host.alive or life != host.life:
            return
        name = host.name
        others = [self.hosts[peer] for peer in host.fetching if peer != name]
        others = [one for one in others if one.alive and one.state.stands and one.model[0] == one.state.last.round]
        others = [one for one in others if not self.is_cut(one.name, name) and not self.is_cut(name, one.name)]
        best = max(others, key=lambda one: one.state.last.round, default=None)
        if best is not None and best.state.last.round >= host.state.last.round:
            host.model, decision = best.model, best.state.last
        elif tries > 8 and host.state.last.round >= 0:  # nobody has it: it is made again from the disk
            host.model, decision = (host.state.last.round, self.anchors[host.state.last.round]), host.state.last
        else:
            self.push(self.now + 1.0, World.fetch, host, life, tries + 1)
            return
        host.holds, host.fetching, host.moved = False, (), ()
        self.happen(host, ev.Fetched(decision))

    def write(self, host: Host, durable: st.Durable) -> bool:
        is_vote = durable.vote is not None and durable.vote != host.disk.vote
        if self.now < QUIET_AT - 5 and self.springs(host, "write"):
            self.seen["restart with the last write lost"] += 1
            return False
        if is_vote:
            self.check_vote(host, durable)
        before, host.disk = host.disk, durable
        written = {*durable.last.results, *(durable.vote.decision.results if durable.vote else ())}
        host.sums |= host.state.held & written
        if durable.last.id != before.last.id:
            for one in host.state.kept:  # who is alone may decide several at once
                if before.last.round < one.round < durable.last.round:
                    self.check_entered(host, one)
            self.check_entered(host, durable.last)
        if is_vote and self.now < QUIET_AT - 5 and self.springs(host, "voted"):
            self.seen["crash between vote and application"] += 1
            return False
        return True

    def springs(self, host: Host, when: str) -> bool:
        """Whether a crash has waited for this moment; it is there."""
        for trap in host.traps:
            if trap[0] == when:
                host.traps = tuple(one for one in host.traps if one is not trap)
                self.crash(host, trap[1])
                return True
        return False

    # -- what must hold --------------------------------------------------------------------------------------------

    def check_told(self, sender: str, message: object) -> None:
        if isinstance(message, Propose):
            key, id = (message.round, message.ballot), message.decision.id
            if self.proposed.setdefault(key, id) != id:
                raise Violation(f"round {message.round}: {sender} proposes two decisions in ballot {message.ballot}")
            self.check_sums(message.decision)
        elif isinstance(message, Promise):
            key = (sender, message.round)
            self.promised[key] = max(self.promised.get(key, -1), message.ballot)
        elif isinstance(message, Accepted) and message.ballot < self.promised.get((sender, message.round), -1):
            raise Violation(f"round {message.round}: {sender} votes in ballot {message.ballot}, against its promise")

    def check_vote(self, host: Host, durable: st.Durable) -> None:
        vote, voters = durable.vote, durable.last.voters
        round, id = vote.decision.round, vote.decision.id
        if host.name not in voters:
            raise Violation(f"{host.name} votes on round {round}, and is no voter")
        if host.name != self.rules.witness and not host.state.held.issuperset(vote.decision.results):
            raise Violation(f"{host.name} votes for sums that it does not hold")
        names = self.votes.setdefault((round, id), {}).setdefault(vote.ballot, set())
        names.add(host.name)
        if len(names) > len(voters) // 2 and self.chosen.setdefault(round, id) != id:
            raise Violation(f"round {round}: two decisions have a majority")

    def check_entered(self, host: Host, decision: Decision) -> None:
        known = self.decisions.get(decision.round)
        if known is not None:
            if known.id != decision.id:
                raise Violation(f"round {decision.round} has two decisions")
            return
        last = self.decisions.get(decision.round - 1)
        if last is None or decision.previous != last.id:
            raise Violation(f"round {decision.round} does not follow the one before")
        # Whoever enters it first has voted, and writes both down at once.
        votes = self.votes.get((decision.round, decision.id), {})
        most = max((len((names | {host.name}) & {*last.voters}) for names in votes.values()), default=1)
        if most < len(last.voters) // 2 + 1:
            raise Violation(f"round {decision.round}: {most} of {len(last.voters)} votes are on disks")
        if self.chosen.setdefault(decision.round, decision.id) != decision.id:
            raise Violation(f"round {decision.round}: another decision has a majority")
        self.decisions[decision.round] = decision
        for update in decision.updates:
            if update in self.counted or update.base != last.round or update.member not in last.members:
                raise Violation(f"round {decision.round} counts an update of {update.member} that it may not")
            self.counted.add(update)
            leased = positions(leases.take(last.lease_of(update.member), update.samples))
            if self.made.get(update.parts) != leased or {*leased} & self.read:
                raise Violation(f"round {decision.round} counts work of {update.member} twice, or another's")
            self.read |= {*leased}
        if decision.updates and decision.anchor != self.anchors[last.round]:
            raise Violation(f"round {decision.round} counts updates that moved from another state")
        self.check_sums(decision)
        leased = [n for _, ranges in decision.leases for n in positions(ranges)]
        if sorted([*leased, *positions(decision.returned), *self.read]) != [*range(decision.cursor)]:
            raise Violation(f"round {decision.round} leases samples twice, or loses some")
        self.anchors[decision.round] = moved(self.anchors[last.round], decision.results)

    def check_sums(self, decision: Decision) -> None:
        if decision.id in self.sound:
            return
        select = Select(0, 0, decision.updates, decision.owners)
        for part, hash in enumerate(decision.results):
            if hash != summed(select.owner(part), part, decision.updates):
                raise Violation(f"round {decision.round}: part {part} is not the sum of what was counted, by its owner")
        self.sound.add(decision.id)

    def check_apply(self, host: Host, action: ev.Apply) -> None:
        decision = action.decision
        if host.model != (decision.round - 1, self.anchors[decision.round - 1]):
            raise Violation(f"{host.name} applies round {decision.round} to the model of round {host.model[0]}")
        host.model = (decision.round, moved(host.model[1], decision.results))
        if host.model[1] != self.anchors[decision.round]:
            raise Violation(f"{host.name} has another anchor of round {decision.round}")
        if action.counted is not None and action.counted == action.own:
            host.moved = host.moved[action.own.samples :]
        elif action.counted is not None:
            host.moved = ()
        if host.moved != positions(decision.lease_of(host.name))[: len(host.moved)]:
            raise Violation(f"{host.name} has work in its parameters that was counted, or was leased to others")

    def check_alive(self) -> None:
        living = [host for host in self.hosts.values() if not host.state.is_out]
        rounds = {host.name: host.state.last.round for host in living}
        is_quick = self.given.family.startswith("async")  # rounds of a member each
        if max(rounds.values()) < 2 or max(rounds.values()) - min(rounds.values()) > (len(living) if is_quick else 1):
            raise Violation(f"not all go on: {rounds}")
        waiting = [
            host.name
            for host in living
            if host.state.can_be_member and not host.state.leaving and not host.state.is_member
        ]
        if waiting:
            raise Violation(f"{waiting} have not become members")

    def check_ended(self) -> None:
        left = [host.name for host in self.hosts.values() if host.state.is_ending and host.state.snapped is not None]
        if left:
            raise Violation(f"{left} have work that is not agreed on")


@functools.lru_cache(1000)
def positions(ranges: tuple[Range, ...]) -> tuple[int, ...]:
    return tuple(n for start, stop in ranges for n in range(start, stop))


def summed(owner: str, part: int, updates: tuple[Update, ...]) -> str:
    return digest("sum", owner, part, [one.parts[part] for one in updates])


@functools.lru_cache(1000)
def moved(anchor: str, results: tuple[str, ...]) -> str:
    return digest(anchor, results)


def _short(event: object) -> str:
    if isinstance(event, ev.Received):
        return f"{type(event.message).__name__} of {event.sender}: " + str(event.message)[:110]
    return str(event)[:110]


def shrink(given: Scenario) -> tuple[Scenario, list[str]]:
    """The smallest scenario found that still fails, and its trace."""

    def fails(one: Scenario) -> bool:
        try:
            World(one).run()
        except Violation:
            return True
        return False

    is_smaller = True
    while is_smaller:
        is_smaller = False
        smaller = [replace(given, faults=given.faults[:n] + given.faults[n + 1 :]) for n in range(len(given.faults))]
        smaller += [replace(given, **{name: 0.0}) for name in ("loss", "twice") if getattr(given, name)]
        for one in smaller:
            if fails(one):
                given, is_smaller = one, True
                break
    world = World(given, traced=True)
    try:
        world.run()
    except Violation as error:
        world.trace.append(f"{world.now:7.2f}  VIOLATION: {error}")
    return given, world.trace

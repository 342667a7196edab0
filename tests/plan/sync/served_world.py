"""A federation without tensors: sites that ask and answer over a network that loses, and a server that is killed."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections import Counter

from konvoi.plan.sync import served
from konvoi.plan.sync import serving as ev

HONEST_UNTIL = 900.0  # seconds; then nothing is lost, and nobody is killed


def hashed(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Site:
    """Asks, trains, and sends what it has learnt until it hears that there is something else to do."""

    def __init__(self, name, pace):
        self.name, self.pace = name, pace
        self.kept = None  # (base, update) on its disk
        self.base = None  # that it trains on
        self.trained = Counter()  # bases


class World:
    def __init__(self, seed, *, machine=served.advance, restart=served.restart, terms=None):
        self.seed, self.machine, self.restart = seed, machine, restart
        self.draw = random.Random(seed)
        self.faults = Counter()
        number = self.draw.randint(2, 9)
        quick = self.draw.random() < 0.25
        least = self.draw.choice((1, 1, 2))
        self.terms = terms or ev.Terms(
            rounds=self.draw.randint(3, 8),
            first=self.draw.randint(1, number),
            cohort=self.draw.choice((0, 0, max(least, number // 2))),
            least=least,
            quorum=self.draw.choice((0.5, 0.8, 1.0)),
            deadline_s=self.draw.choice((0.0, 5.0, 30.0)),
            patience_s=40.0,
            away_s=25.0,
            at_once=self.draw.randint(1, max(1, number // 2)) if quick else 0,
            max_staleness=self.draw.choice((0, 3)) if quick else 0,
            seed=seed,
        )
        self.sites = {f"s{n}": Site(f"s{n}", self.draw.choice((1.0, 3.0, 12.0))) for n in range(number)}
        self.revoked = set()
        self.now, self.queue, self.count = 0.0, [], 0
        self.log, self.disk = [], {hashed("first")}  # what survives the server
        self.state = self.restart(self.terms, hashed("first"), ())
        self.is_up, self.life = True, 0
        self.asked = Counter()  # rounds, by how often a cohort was asked
        self.kills = 0
        for name in self.sites:
            self.after(self.draw.random() * 3, lambda name=name: self.ask(name))
        self.look(self.life)
        if self.draw.random() < 0.7:
            self.after(self.draw.random() * 60, self.kill)
        if self.draw.random() < 0.2 and number > 3:
            self.after(self.draw.random() * 60, self.revoke)

    def after(self, seconds, call):
        self.count += 1
        heapq.heappush(self.queue, (self.now + seconds, self.count, call))

    def chance(self, share):
        return self.now < HONEST_UNTIL and self.draw.random() < share

    # -- the server

    def happen(self, event):
        self.state, actions = self.machine(self.state, event)
        for action in actions:
            if isinstance(action, ev.AddUp):
                self.check_sum(action)
                life = self.life
                self.after(0.2 + self.draw.random(), lambda action=action, life=life: self.added(action, life))
            elif isinstance(action, ev.Write):
                self.check_decision(action)
                self.log.append(json.loads(json.dumps(ev.plain(action))))
            elif isinstance(action, ev.Asked):
                self.asked[action.round] += 1
                assert set(action.cohort) <= {*self.sites} - self.revoked, "a revoked site is asked"

    def added(self, action, life):
        result = hashed(action.base, *[one.update.hash for one in action.updates])
        self.disk.add(result)  # before it is said
        if self.is_up and life == self.life:
            if self.chance(0.1) and self.kill():
                self.faults["killed between the weights and the log"] += 1
                return
            self.happen(ev.Made(action.round, result, self.now))
            self.faults["killed behind the log"] += self.chance(0.1) and self.kill()

    def look(self, life):
        if self.is_up and life == self.life:
            self.happen(ev.Looked(self.now))
            self.after(1.0, lambda: self.look(life))

    def kill(self):
        if not self.is_up or self.now >= HONEST_UNTIL or self.kills >= 4:
            return False
        self.kills += 1
        self.faults["server killed"] += 1
        self.faults["server killed with a round under way"] += bool(self.state.cohort)
        self.is_up = False
        self.after(0.5 + self.draw.random() * 8, self.come_back)
        self.after(10 + self.draw.random() * 60, self.kill)
        return True

    def come_back(self):
        self.is_up, self.life = True, self.life + 1
        log = tuple(ev.written(one) for one in self.log)
        assert all(one.result in self.disk for one in log)
        self.state = self.restart(self.terms, hashed("first"), log)
        self.look(self.life)

    def revoke(self):
        name = self.draw.choice([*self.sites])
        self.revoked.add(name)
        self.faults["revoked"] += 1
        if self.is_up:
            self.happen(ev.Gone(name))

    # -- sites

    def ask(self, name):
        site = self.sites[name]
        if name in self.revoked or (self.state.is_over and self.is_up):
            return
        if self.chance(0.03):
            self.faults["site killed"] += 1
            site.base = None
        self.after(1.0 + self.draw.random(), lambda: self.ask(name))
        if not self.is_up or self.chance(0.1):
            self.faults["question lost"] += self.is_up
            return
        self.happen(ev.Present(name, self.now))
        told = (self.state.wants(name), self.state.base)
        if self.chance(0.1):
            self.faults["answer lost"] += 1
            return
        wants, base = told
        if not wants or site.base == base:
            return
        if site.kept is not None and site.kept[0] == base:
            self.send(name, site.kept[1])  # it was trained already
            return
        site.base = base
        late = site.pace * (1 + self.draw.random()) + (60 if self.chance(0.05) else 0)
        self.faults["straggler"] += late > 60
        self.after(late, lambda: self.learnt(name, base))

    def learnt(self, name, base):
        site = self.sites[name]
        if site.base != base:
            return  # killed meanwhile
        site.base = None
        site.trained[base] += 1
        update = ev.Update(name, base, hashed(name, base, site.trained[base]), 1.0)
        site.kept = (base, update)
        self.send(name, update)

    def send(self, name, update):
        if name in self.revoked:
            return
        delay = self.draw.random()
        for _ in range(1 + self.chance(0.1)):
            if self.chance(0.1):
                self.faults["update lost"] += 1
            else:
                self.after(delay, lambda: self.arrive(update))
            delay += self.draw.random() * 20
            self.faults["update doubled"] += delay > 1

    def arrive(self, update):
        if self.is_up and update.site not in self.revoked:
            self.happen(ev.Came(update, self.now))

    # -- what holds at any moment

    def check_sum(self, action):
        names = [one.update.site for one in action.updates]
        assert len(set(names)) == len(names), "a site counts twice in a round"

    def check_decision(self, write):
        log = [ev.written(one) for one in self.log]
        assert write.round == len(log) + 1, "a round is decided twice, or left out"
        base = log[-1].result if log else hashed("first")
        assert write.base == base, "a decision does not go on from the one before"
        assert write.result in self.disk, "a decision's weights are not on disk"
        before = {one.update.hash for old in log for one in old.updates}
        assert not before & {one.update.hash for one in write.updates}, "an update counts in two rounds"
        names = [one.update.site for one in write.updates]
        assert len(set(names)) == len(names), "a site counts twice in a round"
        needed = self.terms.at_once or self.terms.least
        assert len(names) >= min(needed, len(self.sites)), "too few updates"
        bases = [hashed("first"), *(one.result for one in log)]
        for one in write.updates:
            if not self.terms.at_once:
                assert one.update.base == base, "an update began with other weights"
                assert one.staleness == 0
            else:
                assert one.staleness == len(bases) - 1 - bases.index(one.update.base), "staleness is miscounted"

    def run(self, until=3000.0):
        while self.queue and self.now < until and not (self.is_up and self.state.is_over):
            self.now, _, call = heapq.heappop(self.queue)
            call()
        return self

"""Gossip under faults: an island is in one exchange at a time, both sides take the same half once, and nobody waits for
ever."""

import heapq
import random
from collections import Counter

import pytest

from konvoi.plan.sync import pairs

NAMES = ("a", "b", "c", "d")


class World:
    """Islands whose weights are numbers, on a network that loses, delays, repeats, reorders and cuts as a seed says."""

    def __init__(self, seed, names=NAMES, *, faults=True):
        self.random, self.faults = random.Random(seed), faults
        self.now, self.count, self.queue = 0.0, 0, []
        self.rules = pairs.Rules(every=4, max_ahead=self.random.choice((0, 3)), beat_s=1.0)
        self.states = {name: pairs.begin(name, names, self.rules) for name in names}
        self.weights = {name: self.random.gauss(0, 1) for name in names}
        self.values = {}  # by hash: what can be fetched
        self.halves, self.takes, self.seen = {}, {}, Counter()
        self.cut_until = {}
        for name in names:
            self.push(0.1, name, "step")
            self.push(1.0, name, pairs.Beat())
        if faults:
            for _ in range(3):
                self.push(self.random.uniform(1, 20), "", "cut")

    def push(self, seconds, name, what):
        self.count += 1
        heapq.heappush(self.queue, (self.now + seconds, self.count, name, what))

    def is_cut(self, one, other):
        return self.cut_until.get(frozenset((one, other)), 0.0) > self.now

    def run(self, until):
        while self.queue and self.queue[0][0] <= until:
            self.now, _, name, what = heapq.heappop(self.queue)
            if what == "cut":
                pair = self.random.sample(sorted(self.states), 2)
                self.cut(pair, self.random.uniform(0.5, 4.0))
            elif what == "step":
                self.step(name)
            elif callable(what):
                what()
            else:
                if isinstance(what, pairs.Beat):
                    self.push(1.0, name, what)
                if not (isinstance(what, pairs.Received) and self.is_cut(what.sender, name)):
                    self.happen(name, what)
        return self

    def cut(self, pair, seconds):
        self.seen["cut"] += 1
        self.cut_until[frozenset(pair)] = self.now + seconds
        for one, other in (pair, pair[::-1]):
            self.push(0.0, one, pairs.Reaches(other, False))
            self.push(seconds, one, pairs.Reaches(other, True))

    def step(self, name):
        if not self.states[name].is_holding:
            self.happen(name, pairs.Stepped(self.states[name].step + 1))
        self.push(self.random.uniform(0.1, 0.3), name, "step")

    def happen(self, name, event):
        self.states[name], actions = pairs.advance(self.states[name], event)
        for action in actions:
            if isinstance(action, pairs.Send):
                self.send(name, action)
            elif isinstance(action, pairs.Snapshot):
                self.values[f"weights {action.id}"] = self.weights[name]
                self.push(0.01, name, pairs.Snapshotted(action.id, f"weights {action.id}"))
            elif isinstance(action, pairs.Halve):
                self.fetch(name, action, self.halve)
            else:
                self.fetch(name, action, self.take)

    def send(self, sender, action):
        copies = 1
        if self.faults:
            copies = self.random.choices((0, 1, 2), (0.1, 0.8, 0.1))[0]
        for _ in range(copies):
            delay = self.random.uniform(0.01, 1.5 if self.faults else 0.05)
            self.push(delay, action.to, pairs.Received(sender, action.message))

    def fetch(self, name, action, then):
        if self.is_cut(name, action.peer):
            self.push(0.5, name, lambda: self.fetch(name, action, then))
        else:
            self.push(self.random.uniform(0.01, 0.5), name, lambda: then(name, action))

    def halve(self, name, action):
        guest = self.states[name].guest
        if guest is None or guest.id != action.id:
            return
        assert action.id not in self.halves, f"{name} takes its half of {action.id} twice"
        assert self.states[name].own is None, f"{name} is in two exchanges"
        half = (self.values[action.hash] - self.weights[name]) / 2
        self.halves[action.id] = half
        self.weights[name] += half
        self.values[f"half {action.id}"] = half
        self.happen(name, pairs.Halved(action.id, f"half {action.id}"))

    def take(self, name, action):
        own = self.states[name].own
        if own is None or own.id != action.id:
            return
        assert action.id not in self.takes, f"{name} takes its half of {action.id} twice"
        self.takes[action.id] = self.values[action.hash]
        self.weights[name] -= self.takes[action.id]
        self.happen(name, pairs.Taken(action.id))


def test_a_thousand_seeds_take_every_half_once_and_go_on():
    seen = Counter()
    for seed in range(1000):
        world = World(seed, NAMES[: 2 + seed % 3])
        before = sum(world.weights.values())
        world.run(24.0)
        lost = sum(half for id, half in world.halves.items() if id not in world.takes)  # under way, or given up
        assert world.takes.items() <= world.halves.items()
        assert sum(world.weights.values()) == pytest.approx(before + lost, abs=1e-9), seed
        halves = len(world.halves)
        world.faults = False
        world.cut_until.clear()
        for name, state in world.states.items():
            for peer in sorted(state.lost):
                world.happen(name, pairs.Reaches(peer, True))
        world.run(40.0)
        assert len(world.halves) > halves, f"seed {seed}: nothing goes on"
        assert all(state.step > 20 for state in world.states.values()), f"seed {seed}: somebody waits for ever"
        seen += world.seen
        seen["exchanges"] += len(world.takes)
        seen["given up"] += len(world.halves) - len(world.takes)
    assert seen["exchanges"] > 10_000
    assert seen["cut"] > 1000


@pytest.mark.parametrize("number", [2, 3, 4])
def test_undisturbed_islands_come_to_the_mean(number):
    world = World(1, NAMES[:number], faults=False)
    mean = sum(world.weights.values()) / number
    world.run(60.0)
    for name in world.states:
        world.happen(name, pairs.Leaving())
    world.run(70.0)
    assert all(state.own is None and state.guest is None for state in world.states.values())
    assert all(weight == pytest.approx(mean, abs=1e-3) for weight in world.weights.values())
    assert world.takes == world.halves


def test_a_swap_that_is_said_twice_is_answered_with_the_same_half():
    state = pairs.begin("b", ("a", "b"), pairs.Rules())
    state, (halve,) = pairs.advance(state, pairs.Received("a", pairs.Swap(("a", 0, 1), "h")))
    state, nothing = pairs.advance(state, pairs.Received("a", pairs.Swap(("a", 0, 1), "h")))
    assert isinstance(halve, pairs.Halve)
    assert nothing == (halve,)  # the weights may have been gone; what is fetched twice is halved once
    state, (answer,) = pairs.advance(state, pairs.Halved(("a", 0, 1), "half"))
    state, (again,) = pairs.advance(state, pairs.Received("a", pairs.Swap(("a", 0, 1), "h")))
    assert answer == again == pairs.Send("a", pairs.Swapped(("a", 0, 1), "half"))


def test_who_was_refused_once_is_refused_again():
    """Else the initiator would hear of the first answer, and the partner act upon the second question."""
    state = pairs.begin("b", ("a", "b", "c"), pairs.Rules())
    state, _ = pairs.advance(state, pairs.Received("c", pairs.Swap(("c", 0, 1), "h")))
    state, first = pairs.advance(state, pairs.Received("a", pairs.Swap(("a", 0, 1), "h")))
    state, _ = pairs.advance(state, pairs.Halved(("c", 0, 1), "half"))
    state, second = pairs.advance(state, pairs.Received("a", pairs.Swap(("a", 0, 1), "h")))
    assert first == second == (pairs.Send("a", pairs.Busy(("a", 0, 1))),)
    assert state.guest is None


def test_a_stranger_is_not_answered():
    state = pairs.begin("b", ("a", "b"), pairs.Rules())
    state, actions = pairs.advance(state, pairs.Received("x", pairs.Swap(("x", 0, 1), "h")))
    assert (state.guest, actions) == (None, ())

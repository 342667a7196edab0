"""A convoy whose islands take their steps in turn, in one process: for trying a plan, for tests, and for science."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konvoi.convoy import LiveConvoy
from konvoi.errors import DataError, PlanError
from konvoi.fleet.wire.memory import Hub
from konvoi.fleet.worker import Place
from konvoi.held_out import held_out
from konvoi.island import LiveIsland
from konvoi.job.data.loader import Leased
from konvoi.job.job import Prepared
from konvoi.learner import Follower, Learner
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.island import Island
from konvoi.plan.split.parts import Parts
from konvoi.plan.sync import events as ev
from konvoi.plan.sync.messages import Decision
from konvoi.tally import Stopwatch
from konvoi.task import Task
from konvoi.values import Source


@dataclass
class Simulated:
    """One island: its model, its optimizer, and its place in the convoy."""

    name: str
    island: LiveIsland
    parts: Parts
    learner: Learner
    convoy: LiveConvoy
    batches: Leased
    losses: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.learner.parameters.items()}


class Simulation:
    """`num_islands` single workers. Each takes its share of the job's global batch at every step."""

    def __init__(self, prepared: Prepared, plan: Convoy, num_islands: int, *, island: Island | None = None) -> None:
        source = prepared.splits.train
        if plan.partners != "all":
            raise PlanError("this is for islands that agree all with all", hint="konvoi.simulate_gossip")
        if not isinstance(source, Source):
            raise DataError("islands lease positions of the data, and a stream has none", found=type(source).__name__)
        self.prepared, self.plan, self.hub = prepared, plan, Hub()
        job = prepared.job
        self.batch = job.global_batch // num_islands
        names = tuple(f"island-{number}" for number in range(num_islands))
        rules = plan.rules(num_parts=num_islands, lease=self.batch * plan.steps_per_round)
        first = Decision.first(names, plan.voters(names), rules.lease)
        self.islands: list[Simulated] = []
        self.convoys: list[LiveConvoy] = []  # of servers, too
        self._source, self._rules, self._plan_inside = source, rules, island or Island()
        for name in names:
            self._add(name, first)
        for name in plan.servers:
            whole = {n: p.clone() for n, p in self.islands[0].parameters.items()}
            self.convoys.append(LiveConvoy(name, plan, rules, first, Anchor(whole, plan, rules.num_parts), self.hub))

    def _add(self, name: str, first: Decision) -> Simulated:
        job, rules = self.prepared.job, self._rules
        live = LiveIsland(Place(0, 1), self._plan_inside, torch.device("cpu"), None)
        parts = live.split(job.model, job.objective, seed=job.seed, freeze=job.freeze)
        follows = self.plan.updates == "gradients"
        learner = (Follower if follows else Learner)(job, parts, self.prepared.num_steps)
        trained = {n: p for n, p in learner.parameters.items() if p.requires_grad}
        beside = learner.state if isinstance(learner, Follower) else ()
        anchor = Anchor(trained, self.plan, rules.num_parts, beside)
        convoy = LiveConvoy(name, self.plan, rules, first, anchor, self.hub)
        batches = Leased(self._source, seed=job.seed, collate=job.collate)
        one = Simulated(name, live, parts, learner, convoy, batches)
        convoy.step_with = functools.partial(self._step_with, one)
        convoy.watch = Stopwatch(lambda: self.hub.now)  # by which steps take no time, so that plans stay as they are
        self.islands.append(one)
        self.convoys.append(convoy)
        return one

    def run(self, num_steps: int | None = None) -> Iterator[int]:
        """Yields each step's number when all islands have taken it. Agreements end as late as the plan allows."""
        for step in range(1, (num_steps or self.prepared.num_steps) + 1):
            for one in self.islands:
                if one.convoy.state.is_member and one.convoy.state.stands:  # newcomers have to arrive first
                    self._take_step(one, step)
            while not self._settle():
                self.hub.run(0.05)
            yield step

    def agree(self) -> None:
        """Agree on what was done since the last agreement, too; every island has the agreed weights then."""
        for one in self.islands:
            one.convoy.happen(ev.Ending())
        while not all(one.is_settled() for one in self.convoys):
            self.hub.run(0.05)
            for convoy in self.convoys:
                convoy.catch_up()
        for one in self.islands:
            one.convoy.anchor.load(one.convoy.anchor.vectors())

    def join(self, name: str) -> Simulated:
        """A newcomer, which fetches the agreed state from the others while they train on."""
        contacts = self.plan.servers or tuple(one.name for one in self.islands)
        return self._add(name, Decision.unknown(contacts))

    def _settle(self) -> bool:
        """Whether all can go on. What is on its way arrives as late as the plan allows: when somebody waits for it."""
        if not self.plan.ahead or self.plan.at_once or not self._can_go_on():
            self.hub.run()
        return self._can_go_on()

    def _can_go_on(self) -> bool:
        ready = {one.name: one.catch_up() for one in self.convoys}
        reading = (one.convoy for one in self.islands if one.convoy.state.is_member and one.convoy.state.stands)
        have_data = all(sum(b - a for a, b in one.positions(self.batch)) == self.batch for one in reading)
        return have_data and all(ready[one.name] for one in self.convoys if one.state.stands)

    def _take_step(self, one: Simulated, step: int) -> None:
        island, parts = one.island, one.parts
        for module in parts.modules:
            module.train()
        micro = one.batches.read(one.convoy.positions(self.batch))
        one.learner.lr(step)
        gradient = island.forward_backward(parts, [island.to_device(item) for item in micro])
        one.losses.append(gradient.loss)
        island.clip(parts, gradient, one.learner.clip_grad_norm)
        if island.is_finite(gradient):
            one.learner.step()
        sums = [*one.learner.sums(gradient.weight).values()] if isinstance(one.learner, Follower) else []
        one.convoy.stepped(self.batch, gradient.weight, sums)
        one.convoy.catch_up()

    def _step_with(self, one: Simulated, decision: Decision, mean: list[Tensor]) -> None:
        assert isinstance(one.learner, Follower)
        step = self.plan.step_of(decision, self.prepared.job.global_batch)
        one.learner.step_with(step, dict(zip(one.learner.gradients(), mean, strict=True)))

    def evaluate(self, task: Task) -> Mapping[str, float]:
        """Of the first island."""
        one = self.islands[0]
        with one.learner.averaged():
            return held_out(one.island, one.parts, task)

"""A federation of simulated clients: its rounds, evaluated, saved, and gone on from where it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from konvoi.errors import PlanError
from konvoi.fleet.worker import Place
from konvoi.held_out import held_out
from konvoi.island import LiveIsland, enter
from konvoi.learner import Learner, check_same_model
from konvoi.observe.events import CheckpointSaved, ClientsEvaluated, Evaluated, Ready, RoundDone, StepDone, Warned
from konvoi.plan.island import Island
from konvoi.population.choosing import Costs, Trainer, measure, stack_sizes
from konvoi.population.judging import Sums, judge, mean, spread
from konvoi.population.keeping import keep_finetuned
from konvoi.population.one_by_one import OneByOne
from konvoi.population.reading import Held, reader
from konvoi.population.rounds import Done, Rounds
from konvoi.population.running_statistics import refuse_running_statistics
from konvoi.population.together import Together
from konvoi.state import checkpoint
from konvoi.state.record import whole_checkpoints
from konvoi.task import Outcome, Population, Task

AGREED = "clients"  # what their figures of what is agreed are told as


def work(place: Place, task: Task) -> Outcome:
    """Simulate, as one of the workers. Every worker returns the same."""
    assert task.population is not None
    with enter(place, task.plan) as island, contextlib.closing(Session(island, task, task.population)) as session:
        session.evaluate(0)
        for number in session.rounds():
            begin = time.perf_counter()
            done = session.federation.next(session.trainer)
            session.after(done, time.perf_counter() - begin)
            if session.should_stop() or session.has_converged:
                return session.end("early stopping" if session.has_converged else "stopped", number)
        return session.end("finished", task.prepared.num_steps)


class Session:
    """What surrounds the rounds on one worker. All workers make the same calls; the first speaks."""

    def __init__(self, island: LiveIsland, task: Task, population: Population) -> None:
        begin = time.perf_counter()
        self.island, self.task, self.job, self.place = island, task, task.prepared.job, island.place
        self.is_leader = self.place.worker == 0
        self.emit = self.place.send if self.is_leader else lambda event: None
        # Each worker holds the whole model, and trains clients of its own: there is nothing to add up in a step.
        self.alone = LiveIsland(Place(0, 1), Island(precision=task.plan.precision), island.device, None)
        self.parts = self.alone.split(self.job.model, self.job.objective, seed=self.job.seed, freeze=self.job.freeze)
        self.learner = Learner(self.job, self.parts, task.prepared.num_steps)
        self.shapes = self.learner.shapes()
        self.trained: dict[str, Tensor] = {n: p for n, p in self.learner.parameters.items() if p.requires_grad}
        self.population, self.keeps = population, population.fleet.keep_finetuned
        self.checkpoints = checkpoint.Checkpoints(
            task.folder / "checkpoints",
            keep=task.keep,
            worker=self.place.worker,
            num_workers=self.place.num_workers,
            share=(self.place.worker, self.place.num_workers),
            on_saved=self._on_saved,
        )
        whole = whole_checkpoints(self.checkpoints.folder) if task.resume or self.place.attempt else []
        found = island.gather_objects(whole[-1] if whole else None)[0]
        self.start = int(found[0]) if found is not None else 0
        self.best_loss, self.best_step, self.num_worse = math.inf, -1, 0
        self.evaluated, self.saved = -1, self.start
        clients = task.folder / "clients"
        self.federation = Rounds(
            self.job,
            population.plan,
            population.fleet,
            population.indices,
            self.trained,
            self.place,
            clients,
            self.start,
        )
        if found is not None:
            self._restore(found[1])
        source, fleet = task.prepared.splits.train, population.fleet
        # Half of the room at most, so that there is some for stacks.
        self.read = reader(source, self.job.seed, self.job.collate, island.device, fleet.memory // 2)
        self.most = max(population.indices, key=len)  # samples of one client
        refuse_running_statistics(self.alone, self.parts, self.read, self.most)
        self.held_out = population.held_out if any(map(len, population.held_out)) else ()
        self.trainer, why = self._measure(population)
        size = sum(p.numel() for p in self.trained.values())
        self.emit(Ready(num_parameters=size, seconds=time.perf_counter() - begin, note=why))

    def _measure(self, population: Population) -> tuple[Trainer, str]:
        """How clients are trained here; the costs, and so who trains whom, are the first worker's."""
        fleet, read, num_rounds = population.fleet, self.read, self.task.prepared.num_steps
        one_by_one = OneByOne(self.alone, self.parts, self.job, num_rounds, read)
        if fleet.way == "one by one":
            return Trainer(one_by_one, None, Costs(1.0)), "clients are trained one by one, as asked for"
        batch = self.most[: self.job.global_batch]
        plan, num_clients = population.plan, len(population.indices)
        cohort = min(plan.at_once or plan.cohort or num_clients, num_clients)
        sizes = (fleet.at_once,) if fleet.at_once else stack_sizes(cohort, self.place.num_workers)
        room = fleet.memory - (read.size if isinstance(read, Held) else 0)
        local = population.plan.local
        assert local is not None

        def together() -> Together:
            if self.task.plan.precision not in ("fp32", "fp64"):
                raise PlanError(f"{self.task.plan.precision} is not batched, so far")
            return Together(self.parts.modules[0], self.job, num_rounds, read, self.island.device)

        trainer, why = measure(one_by_one, together, [*self.trained.values()], batch, sizes, room, local)
        must = fleet.way == "together"
        if must and trainer.together is None:
            raise PlanError(why, found='way="together"', hint='way="measured" trains them one by one')
        costs, can_fill_up = self.island.gather_objects((trainer.costs, trainer.can_fill_up))[0]
        costs = dataclasses.replace(costs, alone=1e9) if must else costs
        return dataclasses.replace(trainer, costs=costs, can_fill_up=can_fill_up), why

    @property
    def has_converged(self) -> bool:
        return self.job.patience is not None and self.num_worse >= self.job.patience

    def should_stop(self) -> bool:
        return any(self.island.gather_objects(self.place.stop_requested()))

    def rounds(self) -> Iterator[int]:
        for number in range(self.start + 1, self.task.prepared.num_steps + 1):
            self.place.reach_step(number)
            yield number

    def after(self, done: Done, seconds: float) -> None:
        """Tell, evaluate and save where it is time."""
        job, step = self.job, done.round
        self.emit(
            RoundDone(round=step, asked=done.asked, counted=done.counted, refused=done.refused, clock=done.seconds)
        )
        told = StepDone(
            step=step,
            loss=done.loss,
            grad_norm=done.move,
            lr=self.learner.lr(step),
            weight=done.weight,
            seconds=seconds,
            data_s=0.0,
            wait_s=0.0,
            skipped=not done.counted,
        )
        self.emit(told)
        if self.is_leader and job.hooks.on_step:
            job.hooks.on_step(told)
        if step == self.start + 1:
            self.checkpoints.load_early()
        self.checkpoints.check()
        if step == self.task.prepared.num_steps:
            return  # the last figures and checkpoint are `end`'s
        if job.validate_every and step % job.validate_every == 0:
            self.evaluate(step)
        is_kept = job.patience is not None and self.best_step == step
        if is_kept or (self.task.checkpoint_every and step % self.task.checkpoint_every == 0):
            self.save(step)

    def evaluate(self, step: int) -> None:
        """The agreed weights over the held-out part of the job's data, and over what clients keep for it."""
        if step == self.evaluated or self.job.validate_every == 0 or (step == 0 and self.start):
            return
        self.evaluated = step
        begin = time.perf_counter()
        self.federation.load()
        has_split = self.task.prepared.splits.valid is not None
        if has_split:
            self._tell(step, "valid", held_out(self.island, self.parts, self.task), begin, decides=True)
        if self.held_out:
            begin = time.perf_counter()
            self._tell_clients(step, AGREED, map(self._judge, self._mine()), begin, decides=not has_split)

    def _mine(self) -> range:
        """This worker's part of all clients."""
        return range(self.place.worker, len(self.held_out), self.place.num_workers)

    def _judge(self, client: int) -> tuple[int, Sums]:
        """The agreed weights, and the layers that are its own, over what a client keeps for evaluation."""
        if self.federation.at_first:
            self.federation.load(client)
        return self._sums(client)

    def _sums(self, client: int) -> tuple[int, Sums]:
        """The weights that the module has over what a client keeps for evaluation."""
        held = self.population.held_out[client]
        return client, judge(self.alone, self.parts, self.job.objective, self.read, held, self.job.global_batch)

    def finetune(self, step: int) -> None:
        """Each client trains on by itself, and evaluates that. What is agreed stays as it is."""
        if self.job.validate_every == 0:  # what it was before has not been told
            self._tell_clients(step, AGREED, map(self._judge, self._mine()), time.perf_counter(), decides=False)
        begin = time.perf_counter()
        who = [client for client, held in enumerate(self.population.held_out) if len(held) or self.keeps]
        tuned = map(self._finetuned, self.federation.tuned(who, self.trainer))
        self._tell_clients(step, f"{AGREED}, fine-tuned", tuned, begin, decides=False)

    def _finetuned(self, client: int) -> tuple[int, Sums]:
        if self.keeps:
            keep_finetuned(self.task.folder, client, self.trained)
        return self._sums(client)

    def _tell_clients(
        self, step: int, split: str, mine: Iterable[tuple[int, Sums]], begin: float, *, decides: bool
    ) -> None:
        found = dict(row for rows in self.island.gather_objects([*mine]) for row in rows)
        clients = [found[client] for client in sorted(found) if found[client]]
        self._tell(step, split, mean(clients), begin, decides=decides)
        self.emit(ClientsEvaluated(step=step, split=split, clients=len(clients), spread=spread(clients)))

    def _tell(self, step: int, split: str, values: dict[str, float], begin: float, *, decides: bool) -> None:
        """`decides`: these figures say which round is best, and when to stop early."""
        is_best = decides and values["loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best_step, self.num_worse = values["loss"], step, 0
        elif decides:
            self.num_worse += 1
        seconds = time.perf_counter() - begin
        event = Evaluated(step=step, split=split, values=values, seconds=seconds, best=is_best)
        self.emit(event)
        if self.is_leader and self.job.hooks.on_eval:
            self.job.hooks.on_eval(event)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return self.learner.tensors() | self.federation.state()

    def save(self, step: int) -> None:
        self.federation.load()
        if self.best_step == step:
            self.checkpoints.best_step = step
        facts = {
            "step": step,
            "plan": self.task.plan.describe(),
            "shapes": self.shapes,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.checkpoints.best_step,
            "num_worse": self.num_worse,
            "evaluated_step": self.evaluated,
        }
        self.checkpoints.save(step, self._tensors(), facts, is_best=self.best_step == step)
        self.federation.begin(step, min((one for one, _ in whole_checkpoints(self.checkpoints.folder)), default=0))
        self.saved = step

    def _on_saved(self, saved: checkpoint.Saved) -> None:
        event = CheckpointSaved(
            step=saved.step,
            path=str(saved.path),
            size_bytes=saved.size_bytes,
            blocked_s=saved.blocked_s,
            seconds=saved.seconds,
        )
        self.emit(event)
        if self.job.hooks.on_checkpoint:
            self.job.hooks.on_checkpoint(event)

    def _restore(self, path: Any) -> None:
        from konvoi.state import shards  # loads DCP, which only resuming needs at once

        facts = checkpoint.facts_of(path)
        check_same_model(facts["shapes"], self.shapes)
        for name in shards.read(path, self._tensors(), num_workers=self.place.num_workers):
            self.emit(Warned(message=f"resuming from round {self.start}: the checkpoint holds no {name}"))
        self.parts.refresh()
        self.federation.take_over()
        self.best_loss = facts["best_loss"] if facts["best_loss"] is not None else math.inf
        self.best_step, self.num_worse = facts["best_step"] or -1, facts["num_worse"]
        self.checkpoints.best_step, self.evaluated = facts["best_step"], facts["evaluated_step"]

    def end(self, reason: str, step: int) -> Outcome:
        if reason != "stopped":
            self.evaluate(step)
        if reason != "stopped" and self.federation.local.finetune and step > self.start:
            self.finetune(step)
        if step > self.saved:
            self.save(step)
        self.checkpoints.wait()
        self.island.gather_objects(None)  # the first worker publishes the checkpoint
        return Outcome(reason, step)

    def close(self) -> None:
        self.federation.close()
        self.checkpoints.close()

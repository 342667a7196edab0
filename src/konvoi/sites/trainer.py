"""A round at a site: a process that has the recipe and the data, and no network of its own making.

It reads an order a line from standard input and answers with a line; tensors go through files. What the recipe prints,
and what goes wrong with its traceback, goes to the site's own log and no further.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from konvoi.errors import DataError, KonvoiError, PlanError
from konvoi.fleet.worker import Place, end_with_parent
from konvoi.held_out import held_out
from konvoi.island import LiveIsland
from konvoi.job.adapt import Adapted
from konvoi.job.data.normalized import known, of_told, unnormalized
from konvoi.job.data.of import of
from konvoi.job.data.slot import fill
from konvoi.job.data.statistics import sums
from konvoi.job.job import Job, Prepared, prepare
from konvoi.plan.convoy import Convoy
from konvoi.plan.island import Island
from konvoi.plan.local import Local
from konvoi.population import cohorts
from konvoi.population.keeping import personal
from konvoi.population.one_by_one import OneByOne
from konvoi.population.reading import reader
from konvoi.population.work import Work
from konvoi.recipe import load_recipe, override, recipe_job
from konvoi.sites import surveying
from konvoi.sites.orders import Order, Result, Told
from konvoi.sites.protocol import DATA, NOT_FINITE, TRAINING, convoy_of
from konvoi.state import safetensors
from konvoi.task import Task
from konvoi.values import DataSpec, Source

MEMORY = 1 << 30  # bytes that a site's samples may take, else they are read for each round


class Trainer:
    """A job on a site's own data, and all that it needs to be trained for a round."""

    def __init__(self, told: Told) -> None:
        """Raises: KonvoiError."""
        path = Path(told.recipe)
        job = override(recipe_job(load_recipe(path), path), told.overrides)
        self.prepared, self.parts, self.island = build(
            job, told.data, spec_of(told.spec), told.statistics, device=told.device, threads=told.threads
        )
        if told.frozen:
            _fill(untrained_of(self.parts, self.prepared.job.model), safetensors.read(Path(told.frozen)))
        self.job, self.told = self.prepared.job, told
        source = self.prepared.splits.train
        if not isinstance(source, Source):
            raise DataError("a federation's data are samples that can be numbered", found=type(source).__name__)
        self.indices = np.arange(len(source), dtype=np.int64)
        self.number = int.from_bytes(hashlib.sha256(told.site.encode()).digest()[:6], "big")
        device = self.island.device
        self.at_first = [p.detach().clone() for p in trained_of(self.parts).values()]
        self.read = reader(source, self.job.seed, self.job.collate, device, MEMORY)

    def round(self, order: Order) -> Result:
        """Train from the weights that are given, and leave how far they have come."""
        if order.finetune:
            return self._finetune(order)
        plan, local, job = self._asked(order)
        trained = trained_of(self.parts)
        mine, agreed, control, own, begin = self._given(order, local)
        out: dict[str, Any] = {}
        keep: dict[str, Any] = {}
        result = Result(samples=len(self.indices))
        if order.evaluate:
            result = dataclasses.replace(result, **self._evaluate([*trained.values()], begin))
        weights = [one.to(self.island.device).clone().unsqueeze(0) for one in begin]
        correction = None
        if control is not None:
            correction = control - torch.from_numpy(own["control"]) if "control" in own else control.clone()
        sizes = local.sizes(len(self.indices), job.global_batch)
        batches = [cohorts.order(job.seed, self.number, order.round, self.indices, sizes)]
        one = OneByOne(self.island, self.parts, job, plan.rounds, self.read)
        stacks = None if correction is None else _stacks([*trained.values()], mine, correction)
        found = one.train(Work(order.round, weights, batches, local.proximal, stacks))
        now = [one[0].cpu() for one in weights]
        move = agreed - _flat([one for one, is_own in zip(now, mine, strict=True) if not is_own])
        if not (bool(move.isfinite().all()) and bool(found.losses.isfinite().all())):
            return Result(NOT_FINITE)
        out["move"] = move.numpy()
        if any(mine):
            keep["personal"] = _flat([one for one, is_own in zip(now, mine, strict=True) if is_own]).numpy()
        if control is not None:  # option II of arXiv 1910.06378: from how far it came
            change = (move / found.rates.to(move)) - control
            before = torch.from_numpy(own["control"]) if "control" in own else torch.zeros_like(control)
            out["control"], keep["control"] = change.numpy(), (before + change).numpy()
        for path, arrays in ((order.out, out), (order.keep, keep)):
            with Path(path).open("wb") as file:
                np.savez(file, **arrays)
        total = float(found.weights[0])
        return dataclasses.replace(result, loss=float(found.losses[0]) / total if total else 0.0)

    def _asked(self, order: Order) -> tuple[Convoy, Local, Job]:
        plan = convoy_of(self.told.plan, order.settings)
        assert plan.local is not None
        return plan, plan.local, with_settings(self.job, order.settings)

    def _given(
        self, order: Order, local: Local
    ) -> tuple[list[bool], Tensor, Tensor | None, dict[str, Any], list[Tensor]]:
        """Which parameters are this site's own, what is agreed, the control, what is kept, and all to begin with."""
        mine = personal([*trained_of(self.parts)], local.personal)
        row = torch.from_numpy(np.fromfile(order.weights, "<f4"))
        agreed, control = row.split(len(row) // 2) if local.controls else (row, None)
        own = dict(np.load(order.own)) if order.own else {}
        return mine, agreed, control, own, _begin(self.at_first, mine, agreed, own)

    def _finetune(self, order: Order) -> Result:
        """Train on by itself from the agreed weights, as simulated clients do (`population.rounds.Rounds.tuned`), and
        leave the module's weights in this house."""
        plan, local, job = self._asked(order)
        trained, begin = trained_of(self.parts), self._given(order, local)[-1]
        before = self._evaluate([*trained.values()], begin)
        weights = [one.to(self.island.device).clone().unsqueeze(0) for one in begin]
        sizes = dataclasses.replace(local, epochs=local.finetune, steps=0).sizes(len(self.indices), job.global_batch)
        batches = [cohorts.order(job.seed, self.number, plan.rounds + 1, self.indices, sizes)]
        rate = functools.partial(job.schedule.factor, num_steps=plan.rounds)
        highest = max(range(1, plan.rounds + 1), key=rate)
        OneByOne(self.island, self.parts, job, plan.rounds, self.read).train(Work(highest, weights, batches))
        after = self._evaluate([*trained.values()], now := [one[0] for one in weights])
        if not all(bool(one.isfinite().all()) for one in now):
            return Result(NOT_FINITE)
        _fill(trained, dict(zip(trained, now, strict=True)))
        safetensors.write(Path(order.out), {**trained, **untrained_of(self.parts, self.prepared.job.model)})
        Path(order.keep).write_text(json.dumps({"before": before, "after": after}))
        return Result(samples=len(self.indices))

    @torch.no_grad()
    def _evaluate(self, trained: list[Tensor], begin: list[Tensor]) -> dict[str, Any]:
        if self.prepared.splits.valid is None:
            return {}
        torch._foreach_copy_(trained, begin)
        task = Task(self.prepared, self.island.plan, Path(), False, 0, 0)
        found = held_out(self.island, self.parts, task)
        return {
            "valid_loss": found.pop("loss"),
            "valid_samples": len(self.prepared.splits.valid),
            "metrics": found,
        }


class Surveyor:
    """What a site's own data are like, in the sums that are asked for."""

    def __init__(self, told: Told) -> None:
        """Raises: KonvoiError."""
        path = Path(told.recipe)
        job = override(recipe_job(load_recipe(path), path), told.overrides)
        self.splits = of(fill(unnormalized(job.data), told.data, spec_of(told.spec))).prepare()
        if not isinstance(self.splits.train, Source):
            raise DataError("a stream has no samples to count", found=type(self.splits.train).__name__)

    def round(self, order: Order) -> Result:
        """Leave the fields of the answer."""
        found: dict[str, Any] = sums(self.splits.train, surveying.asked_of(Path(order.weights).read_bytes()))
        nothing: dict[str, Any] = {}
        for path, arrays in ((order.out, found), (order.keep, nothing)):
            with Path(path).open("wb") as file:
                np.savez(file, **arrays)
        return Result()


def build(
    job: Job,
    data: str | Path | None,
    spec: DataSpec | None,
    statistics: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    threads: int = 0,
) -> tuple[Prepared, Any, LiveIsland]:
    """A job whose slot is filled with what lies there (None: its example), normalised by a pack's `statistics` where
    the recipe says so, and its model. Raises: KonvoiError."""
    from konvoi import devices

    if threads:
        torch.set_num_threads(threads)
    # A small site's steps are of all it has, where that is less than a batch.
    filled = known(fill(job.data, data, spec), of_told((statistics or {}).get("columns", {})))
    one = dataclasses.replace(job, data=filled, steps=1, global_batch=1, validate_every=0)
    prepared = prepare(one)
    prepared = dataclasses.replace(prepared, job=dataclasses.replace(prepared.job, global_batch=job.global_batch))
    island = LiveIsland(Place(0, 1, device_kind=device), Island(), devices.select(device, 0), None)
    parts = island.split(prepared.job.model, prepared.job.objective, seed=job.seed, freeze=job.freeze)
    return prepared, parts, island


def trained_of(parts: Any) -> dict[str, Tensor]:
    return {name: p for name, p in parts.named_parameters() if p.requires_grad}


def untrained_of(parts: Any, model: Any) -> dict[str, Tensor]:
    """What is frozen, and the model's constants; without what comes with the job wherever its model is built."""
    given = model.is_given if isinstance(model, Adapted) else lambda name: False
    named = [*parts.named_parameters(), *parts.named_buffers()]
    return {name: one for name, one in named if not one.requires_grad and not given(name)}


def with_settings(job: Job, settings: Mapping[str, float]) -> Job:
    """Raises: PlanError for a learning rate that this job's optimizer does not have."""
    if "lr" not in settings:
        return job
    if not hasattr(job.optimizer, "lr"):
        raise PlanError("this optimizer has no learning rate to be set", found=repr(job.optimizer))
    optimizer: Any = job.optimizer
    return dataclasses.replace(job, optimizer=dataclasses.replace(optimizer, lr=settings["lr"]))


def spec_of(told: Mapping[str, Any]) -> DataSpec:
    """What a sample looks like, as a pack has it."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return DataSpec(**values)


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """What nobody trains is the same at all sites: a seed draws other numbers on another kind of device."""
    for name in tensors.keys() & state.keys():  # tied ones are in it once
        tensors[name].copy_(state[name])


def _begin(trained: list[Tensor], mine: list[bool], agreed: Tensor, own: Mapping[str, Any]) -> list[Tensor]:
    """What each parameter begins with: agreed, or this site's own, which at first is what the model was built with."""
    pieces = iter(agreed.split([p.numel() for p, is_own in zip(trained, mine, strict=True) if not is_own]))
    kept = [p for p, is_own in zip(trained, mine, strict=True) if is_own]
    held = torch.from_numpy(own["personal"]).split([p.numel() for p in kept]) if "personal" in own else kept
    personal = iter(held)
    return [next(personal if is_own else pieces).detach().view_as(p) for p, is_own in zip(trained, mine, strict=True)]


def _stacks(trained: list[Tensor], mine: list[bool], row: Tensor) -> list[Tensor]:
    pieces = iter(row.split([p.numel() for p, is_own in zip(trained, mine, strict=True) if not is_own]))
    return [
        torch.zeros_like(p).unsqueeze(0) if is_own else next(pieces).view(1, *p.shape).to(p)
        for p, is_own in zip(trained, mine, strict=True)
    ]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Trains(Protocol):
    """What does a round at a site."""

    def round(self, order: Order) -> Result: ...


def answer(trains: Trains | None, make: Callable[[], Trains], order: Order) -> tuple[Trains | None, Result]:
    """What has been made, and what an order came to; of what goes wrong a number, with why in the log here."""
    try:
        trains = trains or make()
    except BaseException:  # a recipe may raise anything, and none of it leaves
        traceback.print_exc()
        return None, Result(DATA)
    try:
        return trains, trains.round(order)
    except (KonvoiError, Exception):
        traceback.print_exc()
        return trains, Result(TRAINING)


def serve(make: Callable[[Told], Trains]) -> None:
    """Orders come on standard input until it ends; with its agent this process ends in the middle of one."""
    end_with_parent(os.getppid())
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a recipe prints is for the log
    trains: Trains | None = None
    told = Told(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        trains, result = answer(trains, lambda: make(told), Order(**json.loads(line)))
        answers.write(json.dumps(dataclasses.asdict(result)) + "\n")


if __name__ == "__main__":
    serve(lambda told: (Surveyor if told.kind == "survey" else Trainer)(told))

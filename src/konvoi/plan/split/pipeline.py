"""pp: every worker holds some of a model's blocks; micro-batches flow through them, by torch's pipelining schedules.

The objective is called on every stage, with the stage's own copy of the model (see elsewhere.py): the first stage
reads the batch, the last one computes the loss, and the state between two blocks travels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from konvoi.errors import PlanError
from konvoi.plan.island import TWO_STAGES
from konvoi.plan.split.parts import Parts, drop_gradients, grad_of, gradients_of, local
from konvoi.plan.split.stages import Stage, Tied
from konvoi.values import MicroBatch, Objective

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,  # arXiv 1811.06965
    "1f1b": Schedule1F1B,  # PipeDream-flush, arXiv 2006.09503
    "interleaved": ScheduleInterleaved1F1B,  # arXiv 2104.04473 section 2.2
    "zbv": ScheduleZBVZeroBubble,  # arXiv 2401.10241 section 6
}


State = list[tuple[tuple[int, ...], torch.dtype]]  # of each tensor that travels between two stages


class Pipeline:
    """The stages of one worker, and the schedules that they run by, one for each shape of micro-batches."""

    def __init__(self, stages: list[Stage], objective: Objective, group: dist.ProcessGroup, schedule: str) -> None:
        self.stages, self.objective, self.group, self.schedule = stages, objective, group, schedule
        self.pp = dist.get_world_size(group)
        self.device = next(parameter.device for stage in stages for parameter in stage.parameters())
        self.dtype = torch.promote_types(torch.float32, next(stages[0].parameters()).dtype)  # of sums
        self.is_last = stages[-1].is_last
        self.states: dict[Any, list[State]] = {}  # what each stage receives, by the shapes of a batch
        self.schedules: dict[Any, Any] = {}

    def forward_backward(self, micro: Sequence[MicroBatch], scale: float, announce: Callable[[Tensor], None]) -> None:
        pairs: list[Tensor] = []

        def finish(result: tuple[Tensor, Tensor], item: MicroBatch) -> Tensor:
            loss_sum, weight = result if item.counts else (result[0] * 0.0, result[1] * 0.0)
            pair = torch.stack([loss_sum.detach(), weight.detach().to(loss_sum)])
            pairs.append(pair if pair.dtype == torch.float64 else pair.float())
            return loss_sum * scale

        for stage in self.stages:
            stage.set(self.objective, micro, finish)
        schedule = self._schedule(micro)
        pairs.clear()  # of looking for shapes
        numbers = torch.arange(len(micro))
        first = (numbers,) if self.stages[0].index == 0 else ()
        schedule.step(*first, number=numbers, target=numbers if self.is_last else None, return_outputs=False)
        announce(torch.stack(pairs).sum(0) if pairs else torch.zeros(2, dtype=self.dtype, device=self.device))

    @torch.no_grad()
    def run(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        """Forward only, one stage after the other."""
        result = None
        for stage in self.stages:
            stage.set(function, [MicroBatch(batch)])
        states = self._states(batch)
        state: tuple[Tensor, ...] = ()
        for stage in self.stages:
            before, after = (self.worker_of(stage.index + step) for step in (-1, 1))
            me = dist.get_rank(self.group)
            if stage.index > 0 and before != me:
                state = self._empty(states[stage.index])
                for one in state:
                    dist.recv(one, group=self.group, group_src=before)
            result = stage(*state, number=torch.zeros(1, dtype=torch.int64))
            if not stage.is_last:
                state = result
                for one in state if after != me else ():
                    dist.send(one.contiguous(), group=self.group, group_dst=after)
        return result if self.is_last else None

    def worker_of(self, index: int) -> int:
        """Which worker of the axis holds a stage."""
        if self.schedule == "zbv":
            return index if index < self.pp else 2 * self.pp - 1 - index
        return index % self.pp

    def _schedule(self, micro: Sequence[MicroBatch]) -> Any:
        shapes = {_shapes(item.batch) for item in micro}
        if len(shapes) > 1:
            raise PlanError(
                "a pipeline's micro-batches must have one shape",
                found=" and ".join(map(str, sorted(shapes)))[:300],
                hint="a global batch that data parallelism and micro-batches divide, and samples of one length",
            )
        key = (len(micro), *shapes)
        if key not in self.schedules:
            states = self._states(micro[0].batch)
            stages = [self._stage(stage, states) for stage in self.stages]
            self.schedules[key] = SCHEDULES[self.schedule](
                stages if self.schedule in TWO_STAGES else stages[0],
                len(micro),
                loss_fn=lambda loss, target: loss,
                scale_grads=False,
            )
        return self.schedules[key]

    def _stage(self, stage: Stage, states: list[State]) -> PipelineStage:
        def like(state: State) -> tuple[Tensor, ...]:
            return tuple(torch.empty(shape, dtype=dtype, requires_grad=True) for shape, dtype in state)

        return PipelineStage(
            stage,
            stage.index,
            stage.num_stages,
            self.device,
            input_args=like(states[stage.index]) if stage.index > 0 else (torch.zeros(1, dtype=torch.int64),),
            output_args=like([((), self.dtype)] if stage.is_last else states[stage.index + 1]),
            group=self.group,
        )

    def _empty(self, state: State) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(shape, dtype=dtype, device=self.device) for shape, dtype in state)

    @torch.no_grad()
    def _states(self, batch: Any) -> list[State]:
        """Shapes and types of what each stage receives for such a batch: each in turn finds out what it sends, once."""
        key = _shapes(batch)
        if key not in self.states:
            held = {stage.index: stage for stage in self.stages}
            states: list[State] = [[]]
            for index in range(self.stages[0].num_stages - 1):
                told: list[Any] = [None]
                if stage := held.get(index):
                    was_training = stage.training
                    stage.eval()  # the shapes are the same, and running statistics stay as they are
                    sent = stage(*self._empty(states[index]), number=torch.zeros(1, dtype=torch.int64))
                    stage.train(was_training)
                    told = [[(tuple(one.shape), one.dtype) for one in sent]]
                dist.broadcast_object_list(told, group=self.group, group_src=self.worker_of(index))
                states.append(told[0])
            self.states[key] = states
        return self.states[key]


class Copies:
    """Parameters that stand on several stages, by the one-owner rule: the owner's gradient is the sum over all uses,
    the owner's weight is what the others hold. Norm, optimizer state and checkpoints know the owner alone."""

    def __init__(self, pipeline: Pipeline, tied: Sequence[Tied], mesh: DeviceMesh) -> None:
        self.links: list[tuple[nn.Parameter, int, dist.ProcessGroup]] = []  # this worker's, the owner, among whom
        self.names: set[str] = set()
        held = {stage.index: stage.module for stage in pipeline.stages}
        me = dist.get_rank(pipeline.group)
        for tie in tied:
            workers = sorted({pipeline.worker_of(index) for index in (tie.stage, *tie.copies)})
            group = _among(mesh, workers) if len(workers) > 1 else None
            mine = held[tie.stage].get_parameter(tie.owner) if tie.stage in held else None
            for index in tie.copies.keys() & held.keys():
                alias = tie.copies[index]
                self.names.add(alias)
                if mine is None:
                    mine = held[index].get_parameter(alias)
                else:  # two uses on one worker are one parameter again
                    path, _, leaf = alias.rpartition(".")
                    setattr(held[index].get_submodule(path), leaf, mine)
            if group is not None and me in workers:
                assert mine is not None
                self.links.append((mine, workers.index(pipeline.worker_of(tie.stage)), group))

    def add_gradients(self) -> None:
        for parameter, owner, group in self.links:
            if parameter.requires_grad:
                dist.reduce(local(grad_of(parameter)), group=group, group_dst=owner)
                if dist.get_rank(group) != owner:
                    parameter.grad = None  # what is summed here is nobody's to keep

    @torch.no_grad()
    def refresh(self) -> None:
        for parameter, owner, group in self.links:
            dist.broadcast(local(parameter.detach()), group=group, group_src=owner)


def pipelined(
    stages: list[Stage], tied: Sequence[Tied], objective: Objective, mesh: DeviceMesh, schedule: str
) -> Parts:
    """The parts of a worker that holds these stages. How each is sharded or replicated stands around this."""
    group = mesh.get_group("pp")
    for stage in stages:
        stage.connect()
    pipeline = Pipeline(stages, objective, group, schedule)
    copies = Copies(pipeline, tied, mesh)
    copies.refresh()
    named = [item for stage in stages for item in stage.module.named_parameters()]
    owned = [p for name, p in named if p.requires_grad and name not in copies.names]
    if not owned:
        raise PlanError(
            "a stage of this pipeline has nothing to train",
            found=f"all of {', '.join(block for stage in stages for block in stage.blocks)} is frozen",
            hint="fewer stages, or fewer frozen parameters",
        )

    def forward_backward(micro: Sequence[MicroBatch], scale: float, announce: Callable[[Tensor], None]) -> None:
        pipeline.forward_backward(micro, scale, announce)
        copies.add_gradients()

    return Parts(
        modules=tuple(stage.module for stage in stages),
        names=("",) * len(stages),
        objective=objective,
        forward_backward=forward_backward,
        begin=partial(drop_gradients, [p for _, p in named]),
        add_up=lambda row: None,
        finish=lambda: None,
        gradients=partial(gradients_of, owned),
        run=pipeline.run,
        norm_groups=(group,),
        is_pipeline=True,
        copies=frozenset(copies.names),
        refresh=copies.refresh,
    )


def _among(mesh: DeviceMesh, workers: Sequence[int]) -> dist.ProcessGroup:
    """A group of some of the workers of this worker's pipeline; made by all workers of all pipelines together."""
    mine: dist.ProcessGroup | None = None
    for line in mesh.mesh.flatten(1).T:  # (lines, pp): pp is the outermost axis
        ranks = line[list(workers)].tolist()
        group = dist.new_group(ranks)
        if dist.get_rank() in line:
            mine = group
    assert mine is not None
    return mine


def shared_by_all_stages(parts: Parts, group: dist.ProcessGroup) -> Parts:
    """What the last stage alone knows, the sums of a step, becomes known to all; the outermost of all splits."""
    rows: list[Tensor] = []

    def add_up(row: Tensor) -> None:
        rows.append(row)
        parts.add_up(row)

    def finish() -> None:
        parts.finish()
        while rows:
            dist.all_reduce(rows.pop(), group=group)

    return replace(parts, add_up=add_up, finish=finish)


def _shapes(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    values = batch.items() if isinstance(batch, dict) else enumerate(batch) if isinstance(batch, (list, tuple)) else ()
    return tuple((name, _shapes(value)) for name, value in values)

"""dp: every worker holds the whole model; gradients are summed in buckets while the backward pass goes on.

torch's DDP is not used: it divides by the number of workers, lays its buckets out anew after the first step (which
changes the order of sums, so that a resumed run would differ in the last bit), and wants one module and one call of
its forward. Here the layout is fixed by the parameters' order. `reduce_one_by_one` is the slow twin.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from konvoi.plan.split import same_machine
from konvoi.plan.split.parts import ROW_LENGTH, Parts, like, local, run_micro_batches

# DDP's default, arXiv 2006.15704 section 4.1: large enough for bandwidth, small enough to overlap.
BUCKET_BYTES = 25_000_000
# The first to be ready is small, so that sending begins early. Not on CPU, where sending takes the cores from the
# backward pass: there a bucket less is quicker (1 % of a step of 0.12 s).
FIRST_BUCKET_BYTES = 1_000_000


@dataclass
class Bucket:
    sent: Tensor  # what is reduced: the gradients end to end, and room for a row of sums
    flat: Tensor  # the gradients alone
    row: Tensor
    parameters: list[nn.Parameter]
    missing: int = 0  # gradients that are still to come in this step


class Buckets:
    """Gradients as views of flat buffers, reduced in a fixed order as soon as they are whole.

    Workers that share a machine and its processors add up in memory, when all is whole: there is nothing to overlap.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.group = group
        runs = _assign(list(parameters)[::-1])
        shapes = [(sum(local(p).numel() for p in run) + ROW_LENGTH, run[0].dtype) for run in runs]
        on_cpu = all(run[0].device.type == "cpu" for run in runs)
        self.common = same_machine.in_common(shapes, group) if on_cpu else None
        held = (
            self.common.own
            if self.common
            else [_zeros(run, numel) for run, (numel, _) in zip(runs, shapes, strict=True)]
        )
        self.buckets = [_flatten(run, sent) for run, sent in zip(runs, held, strict=True)]
        self.row: Tensor | None = None
        self.armed = False  # whether this backward pass is the step's last
        self.next = 0  # the bucket to be sent next: the same order on every worker, whoever is ready first
        self.works: list[dist.Work] = []
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(number))

    def begin(self) -> None:
        self.next = 0
        for bucket in self.buckets:
            bucket.sent.zero_()
            _restore_views(bucket)

    def arm(self) -> None:
        """The next backward pass is the last of the step: send what becomes whole."""
        self.armed = True
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def add_up(self, row: Tensor) -> None:
        """Sum the row, too: behind the last bucket's gradients, which saves a message, where its type has room for it.

        Called before that bucket is sent, which is in the step's last backward pass.
        """
        last = self.buckets[-1]
        if last.flat.dtype == row.dtype:
            self.row = row
            last.row.copy_(row)
        else:
            self._reduce(row)

    def finish(self) -> None:
        """Send what the objective did not reach, and wait for everything."""
        self.armed = False
        for bucket in self.buckets[self.next :]:
            self._send(bucket)
        self.next = len(self.buckets)
        if self.common is not None:
            self.common.add_up()
        for work in self.works:
            work.wait()
        self.works.clear()
        if self.row is not None:
            self.row.copy_(self.buckets[-1].row)
            self.row = None

    def _hook(self, number: int) -> Callable[[Tensor], None]:
        me = weakref.ref(self)  # a parameter that held its buckets would never be freed: torch's hooks hide the cycle

        def on_gradient(_: Tensor) -> None:
            buckets = me()
            if buckets is not None and buckets.armed:
                buckets.one_more(number)

        return on_gradient

    def one_more(self, number: int) -> None:
        """A gradient of a bucket is whole."""
        self.buckets[number].missing -= 1
        while self.next < len(self.buckets) and self.buckets[self.next].missing == 0:
            self._send(self.buckets[self.next])
            self.next += 1

    def _send(self, bucket: Bucket) -> None:
        if self.common is None:
            self._reduce(bucket.sent)

    def _reduce(self, tensor: Tensor) -> None:
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None
        self.works.append(work)


def _assign(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Cut the parameters, last first, into runs of one dtype and about the bucket's size."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        limit = FIRST_BUCKET_BYTES if len(groups) == 1 and parameter.device.type != "cpu" else BUCKET_BYTES
        if not groups or groups[-1][0].dtype != parameter.dtype or size >= limit:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += local(parameter).numel() * parameter.element_size()
    return groups


def _zeros(run: list[nn.Parameter], numel: int) -> Tensor:
    return torch.zeros(numel, dtype=run[0].dtype, device=run[0].device)


def _flatten(parameters: list[nn.Parameter], sent: Tensor) -> Bucket:
    bucket = Bucket(sent, sent[:-ROW_LENGTH], sent[-ROW_LENGTH:], parameters)
    _restore_views(bucket)
    return bucket


def _restore_views(bucket: Bucket) -> None:
    """Point every `.grad` into the buffer; a user's `zero_grad(set_to_none=True)` takes them away."""
    offset = 0
    for parameter in bucket.parameters:
        own = local(parameter.detach())
        stop = offset + own.numel()
        if parameter.grad is None:
            parameter.grad = like(parameter, bucket.flat[offset:stop].view_as(own))
        offset = stop


def replicate(parts: Parts, group: dist.ProcessGroup) -> Parts:
    """Sum the gradients over `group`. The modules stay as they are.

    They are sent while the backward pass goes on, where it is one; a pipeline's gradients are sent when it is empty.
    """
    buckets = Buckets([p for _, p in parts.named_parameters() if p.requires_grad], group)
    overlapped: dict[str, Any] = {}
    if not parts.is_pipeline:
        (module,) = parts.modules
        run = partial(run_micro_batches, module, parts.objective, before_last=buckets.arm)
        overlapped["forward_backward"] = run
    return replace(
        parts,
        begin=buckets.begin,
        add_up=buckets.add_up,
        finish=buckets.finish,
        gradients=lambda: [bucket.flat for bucket in buckets.buckets],
        **overlapped,
    )


def reduce_one_by_one(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """The slow twin of `Buckets`: after the backward pass, one all-reduce a parameter."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=group)

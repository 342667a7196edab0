"""The trained weights of an island whole, on the CPU of its first worker, whatever its plan has made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from konvoi import devices
from konvoi.errors import PlanError
from konvoi.island import LiveIsland
from konvoi.plan.split.parts import Parts, local

EXACT = (torch.float32, torch.float64)


class Mirror:
    """Every worker calls the same methods at the same time. Islands under unlike plans have the same `tensors`."""

    def __init__(self, island: LiveIsland, parts: Parts) -> None:
        """Collective, and slow: once for a run. Raises: PlanError where a worker's share is not a block."""
        self.island, self.parts = island, parts
        own = {name: p.detach() for name, p in parts.named_parameters() if p.requires_grad}
        held = island.gather_objects({name: (tuple(p.shape), p.dtype) for name, p in own.items()})
        table = {name: what for one in reversed(held) for name, what in one.items()}
        self._order = in_order(table)
        self._holders = {name: next(n for n, one in enumerate(held) if name in one) for name in table}
        self._table, self._own = table, own
        self._is_first = island.place.worker == 0
        is_whole = island.plan.fsdp * island.plan.tp * island.plan.pp == 1
        # What the first worker trains is what is agreed on, where nothing has to be brought together or cast.
        self.is_direct = is_whole and island.device.type == devices.CPU and {d for _, d in table.values()} <= {*EXACT}
        self._blocks = {} if is_whole else {name: self._block(own[name]) for name in self._order if name in own}
        self.tensors: dict[str, Tensor] = {}
        if self._is_first:
            self.tensors = {name: own[name] if self.is_direct else self._empty(name) for name in self._order}
        self.bring()

    def _empty(self, name: str) -> Tensor:
        shape, dtype = self._table[name]
        return torch.empty(shape, dtype=dtype if dtype in EXACT else torch.float32)

    def _block(self, parameter: Tensor) -> tuple[slice, ...]:
        """Where this worker's share lies in the whole."""
        mine = local(parameter)
        if mine is parameter:
            return ()
        from torch.distributed.tensor import DTensor

        assert isinstance(parameter, DTensor)
        worker = self.island.place.worker
        marked = DTensor.from_local(
            torch.full_like(mine, worker, dtype=torch.float32),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        places = (marked.full_tensor() == worker).nonzero()
        if not len(places):
            return (slice(0, 0),)
        first, last = places.amin(0).tolist(), places.amax(0).tolist()
        block = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        if (
            tuple(b - a + 1 for a, b in zip(first, last, strict=True)) != tuple(mine.shape)
            or len(places) != mine.numel()
        ):
            raise PlanError("a worker's share of a parameter is no block of it", found=str(parameter.placements))
        return block

    @torch.no_grad()
    def bring(self) -> None:
        """What the workers have, to the first one's `tensors`."""
        if self.is_direct:
            return
        for name in self._order:
            holder, parameter = self._holders[name], self._own.get(name)
            whole = None if parameter is None else _whole(parameter)
            if holder == 0 and self._is_first:
                assert whole is not None
                self.tensors[name].copy_(whole)
            elif self._is_first:
                shape, dtype = self._table[name]
                coming = torch.empty(shape, dtype=dtype, device=self.island.device)
                dist.recv(coming, src=holder)
                self.tensors[name].copy_(coming)
            elif holder == self.island.place.worker:
                assert whole is not None
                dist.send(whole.contiguous(), dst=0)

    @torch.no_grad()
    def take_back(self) -> None:
        """What the first worker's `tensors` are now, to all workers."""
        is_alone = self.island.place.num_workers == 1
        if is_alone and self.is_direct:
            return
        for name in self._order:
            shape, dtype = self._table[name]
            if self._is_first:
                whole = self.tensors[name].to(self.island.device, dtype)
            else:
                whole = torch.empty(shape, dtype=dtype, device=self.island.device)
            if not is_alone:
                dist.broadcast(whole, src=0)
            if name in self._own and not (self._is_first and self.is_direct):
                mine = local(self._own[name])
                mine.copy_(whole[self._blocks.get(name, ())])
        self.parts.refresh()


def _whole(parameter: Tensor) -> Tensor:
    if local(parameter) is parameter:
        return parameter
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return parameter.full_tensor()


def in_order(names: Iterable[str]) -> list[str]:
    """The same for every plan, with numbers as numbers.

    >>> in_order(["blocks.10.w", "blocks.9.w", "a"])
    ['a', 'blocks.9.w', 'blocks.10.w']
    """
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])

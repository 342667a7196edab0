"""Memory that a group's workers hold in common, where they share a machine: sums without a network between them.

A message over the loopback is copied four times by the kernel. Here every worker sees the others' tensors, adds up its
share of the places, and writes the sum into all of them: 3.5 MB of two workers take 1.2 ms instead of 5.8.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

LINE = 64  # bytes of a cache line: where each tensor begins


@dataclass
class Common:
    """One-dimensional tensors of equal shapes on every worker, `tensors[worker][k]`; all can be read and written."""

    group: dist.ProcessGroup
    tensors: list[list[Tensor]]

    @property
    def own(self) -> list[Tensor]:
        return self.tensors[dist.get_rank(self.group)]

    @torch.no_grad()
    def add_up(self) -> None:
        """Every tensor becomes the sum over the workers, the same to the last bit on all. All must call it.

        Raises: RuntimeError of torch.distributed where a worker is gone.
        """
        dist.barrier(self.group)  # all have written
        rank, num_workers = dist.get_rank(self.group), len(self.tensors)
        for same in zip(*self.tensors, strict=True):
            numel = same[0].numel()
            first, *others = (
                tensor[numel * rank // num_workers : numel * (rank + 1) // num_workers] for tensor in same
            )
            for other in others:
                first.add_(other)
            for other in others:
                other.copy_(first)
        dist.barrier(self.group)  # all is summed


def in_common(shapes: Sequence[tuple[int, torch.dtype]], group: dist.ProcessGroup) -> Common | None:
    """Zeros by (number of elements, dtype). None, on every worker, where one does not see the memory of another."""
    sizes = [-(-numel * dtype.itemsize // LINE) * LINE for numel, dtype in shapes]
    held = _Memory.of(max(LINE, sum(sizes)))
    all_held: list[_Memory | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_held, held, group=group)
    seen = [memory for memory in all_held if memory is not None and memory.is_seen()]
    sees_all = torch.tensor([len(seen) == len(all_held)], dtype=torch.int32)
    dist.all_reduce(sees_all, op=dist.ReduceOp.MIN, group=group)
    tensors = [memory.tensors(shapes, sizes) for memory in seen] if sees_all else []
    dist.barrier(group)  # none is closed before all have it
    if held is not None:
        os.close(held.descriptor)
    return Common(group, tensors) if sees_all else None


@dataclass(frozen=True)
class _Memory:
    """A file without a name: it is gone with the last process that holds it, killed or not."""

    process: int
    descriptor: int
    token: str  # processes of two machines may have the same number

    @classmethod
    def of(cls, num_bytes: int) -> _Memory | None:
        if platform.system() != "Linux":
            return None
        token = secrets.token_hex(8)
        descriptor = os.memfd_create(f"konvoi-{token}")
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)  # now, or a page that is not there ends the process
        except OSError:
            os.close(descriptor)
            return None
        return cls(os.getpid(), descriptor, token)

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self.process}/fd/{self.descriptor}")

    def is_seen(self) -> bool:
        try:
            with self.path.open("r+b"):
                return self.token in str(self.path.readlink())
        except OSError:
            return False

    def tensors(self, shapes: Sequence[tuple[int, torch.dtype]], sizes: Sequence[int]) -> list[Tensor]:
        whole = torch.from_file(str(self.path), shared=True, size=sum(sizes), dtype=torch.uint8)
        parts = zip(whole.split(list(sizes)), shapes, strict=True)
        return [part[: numel * dtype.itemsize].view(dtype) for part, (numel, dtype) in parts]

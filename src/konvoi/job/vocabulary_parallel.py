"""Cross entropy where each worker holds the logits of a part of the vocabulary, which are never put together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The sum over all targets but `ignore_index`, in at least float32. `logits` (..., vocab), `targets` (...).

    Where `logits` are a DTensor whose last dim is cut (tp), each worker's part stays on it (arXiv 1909.08053 section
    3), and the result is a plain tensor that all of them hold.
    """
    if type(logits) is not Tensor:
        from torch.distributed.tensor import DTensor, Shard

        assert isinstance(logits, DTensor)
        mesh = logits.device_mesh
        if logits.placements == (Shard(logits.ndim - 1),):
            # As DTensor cuts: equal parts, of which the last may be short, or empty.
            first = -(-logits.shape[-1] // mesh.size()) * mesh.get_local_rank()
            own = logits.to_local().flatten(0, -2)
            found: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
                _wide(own), targets.flatten(), first, mesh.get_group(), ignore_index
            )
            return found
        logits = logits.full_tensor()
    return F.cross_entropy(_wide(logits).flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=ignore_index)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # a sum needs the digits


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, first: int, group: dist.ProcessGroup, ignore_index: int
    ) -> Tensor:
        """`logits` (targets, own part of the vocabulary), which begins at token `first`."""
        part = logits.shape[-1]
        largest = logits.max(-1).values if part else logits.new_full(logits.shape[:-1], -torch.inf)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - largest.unsqueeze(-1)
        counts = targets != ignore_index
        is_own = counts & (targets >= first) & (targets < first + part)
        own = torch.where(is_own, targets - first, 0).unsqueeze(-1)
        picked = torch.where(is_own, shifted.gather(-1, own).squeeze(-1), 0.0) if part else torch.zeros_like(largest)
        odds = shifted.exp_()
        both = torch.stack([odds.sum(-1), picked])
        dist.all_reduce(both, group=group)
        total, picked = both
        ctx.save_for_backward(odds.div_(total.unsqueeze(-1)), own, is_own, counts)
        return torch.where(counts, total.log() - picked, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, own, is_own, counts = ctx.saved_tensors
        found = probabilities * (gradients[0] * counts).unsqueeze(-1)
        if found.shape[-1]:
            found.scatter_add_(-1, own, -(gradients[0] * is_own).to(found).unsqueeze(-1))
        return found, None, None, None, None

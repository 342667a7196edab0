"""Attention under tp: each worker runs the device's own kernel over its own heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.overrides import TorchFunctionMode


class LocalAttention(TorchFunctionMode):
    """Inside, scaled_dot_product_attention runs over each worker's own heads."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh, self.worker, self.num_workers = mesh, mesh.get_local_rank(), mesh.size()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and isinstance(args[0], DTensor):
            return _attend(self.mesh, self.worker, self.num_workers, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    mesh: DeviceMesh,
    worker: int,
    num_workers: int,
    q: DTensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """q (batch, heads, seq, head_dim); k and v may have fewer heads, of which a worker takes those that its queries
    read: where there are fewer than workers, several take the same."""
    heads = q.shape[1]
    own_heads = heads // num_workers
    first = own_heads * worker

    def own(tensor: Tensor) -> Tensor:
        seen = (
            tensor if isinstance(tensor, DTensor) else DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
        )
        if tensor.shape[1] % num_workers == 0:
            cut: Tensor = seen.redistribute(placements=[Shard(1)]).to_local()
            if seen.placements != (Shard(1),) and cut.requires_grad and not torch.compiler.is_compiling():
                # What is gathered from it has no gaps, but keeps the strides that it had (torch 2.13).
                cut.register_hook(Tensor.contiguous)
            return cut
        group = heads // tensor.shape[1]  # queries that share a head
        every: Tensor = seen.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        return every[:, first // group : (first + own_heads - 1) // group + 1]

    if heads % num_workers:
        raise ValueError(f"{heads} heads of attention for {num_workers} workers")
    if attn_mask is not None:
        attn_mask = own(attn_mask) if attn_mask.ndim == 4 and attn_mask.shape[1] == heads > 1 else _whole(attn_mask)
    mine = own(q), own(k), own(v)
    result = F.scaled_dot_product_attention(
        *mine,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=mine[0].shape[1] != mine[1].shape[1],
    )
    return DTensor.from_local(result, mesh, [Shard(1)], run_check=False)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

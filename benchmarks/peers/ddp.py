"""DistributedDataParallel, tuned as its own users would: `torchrun --standalone --nproc-per-node 2 ddp.py ...`.

Gradients are views of the buckets, the graph is declared static, AdamW is fused. With `--checkpoint-every` the first
worker calls `torch.save` in the loop.
"""

import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import _work


def main() -> None:
    args = _work.arguments()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    splits = _work.prepared(args.work)
    module = _work.module(args.work, splits)
    model = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.AdamW(_work.decay_groups(module), lr=_work.LR, betas=_work.BETAS, fused=True)
    batches = _work.batches(args.work, splits, rank, world_size)

    ends, losses, blocked = _work.Ends(told=rank == 0), [], []
    for step in range(1, args.steps + 1):
        tokens = next(batches)["input_ids"]
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), _work.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # the gradients stay views of the buckets
        losses.append(loss.item())
        if args.checkpoint_every and step % args.checkpoint_every == 0 and rank == 0:
            blocked.append((step, save(module, optimizer)))
        ends.step()

    losses = _work.mean_of_workers(losses)
    if rank == 0:
        _work.leave_trace(module, ends, losses, blocked)
    _work.leave_together()


def save(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds that it took; the file appears whole."""
    started = time.perf_counter()
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.new")
    os.replace("checkpoint.new", "checkpoint.pt")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

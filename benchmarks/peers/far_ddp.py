"""DistributedDataParallel between far hosts, for `wan.py --part speed`: `python far_ddp.py ORDER`, a process a host.

Gradients are views of the buckets, the graph is declared static; the same model, data, batch and optimizers as konvoi's
islands, Muon in float32 as there. Without `exchange` the same step is taken by each alone. Prints when each step ended.
"""

import json
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, __file__.rsplit("/", 2)[0])

import _far
from konvoi.job.data.loader import Batches
from konvoi.job.job import prepare


def main() -> None:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    job = prepare(_far.job(_far.Shape(order["depth"], order["width"]), order["steps"]))
    torch.manual_seed(0)
    module = job.job.model()
    model = module
    if order["exchange"]:
        model = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=True)
    optimizers = job.job.optimizer.build(list(module.named_parameters()))
    batches = Batches(
        job.splits.train, seed=0, global_batch=_far.SAMPLES * world_size, worker=rank, num_workers=world_size
    )
    ends = []
    for _, (micro,) in zip(range(order["steps"]), batches, strict=False):
        tokens = micro.batch["input_ids"]
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)  # the gradients stay views of the buckets
        ends.append(time.monotonic())
    dist.barrier()
    print(json.dumps(ends), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

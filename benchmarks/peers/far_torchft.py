"""torchft's DiLoCo between far hosts, for `wan.py --part speed`: `python far_torchft.py ORDER`, a process a host.

The same model, data, batch and inner optimizers as konvoi's islands; an agreement every `every` steps, in float32, as
its quantized all-reduce needs a GPU. The first host runs the lighthouse. Prints when each step ended.
"""

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, __file__.rsplit("/", 2)[0])

from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo

import _far
from konvoi.job.data.loader import Batches
from konvoi.job.job import prepare

LIGHTHOUSE_PORT, STORE_PORT = 29510, 29511


def main() -> None:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here, first = os.environ["HERE"], os.environ["MASTER_ADDR"]
    lighthouse = LighthouseServer(bind=f"{first}:{LIGHTHOUSE_PORT}", min_replicas=world_size) if rank == 0 else None
    store = dist.TCPStore(here, STORE_PORT, is_master=True, wait_for_workers=False)
    job = prepare(_far.job(_far.Shape(order["depth"], order["width"]), order["steps"]))
    torch.manual_seed(0)
    model = job.job.model()
    optimizers = job.job.optimizer.build(list(model.named_parameters()))
    long = timedelta(minutes=10)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=long),
        load_state_dict=lambda state: None,
        state_dict=dict,
        min_replica_size=world_size,
        use_async_quorum=False,
        timeout=long,
        quorum_timeout=long,
        connect_timeout=long,
        rank=0,
        world_size=1,
        store_addr=here,
        store_port=STORE_PORT,
        lighthouse_addr=f"http://{first}:{LIGHTHOUSE_PORT}",
        replica_id=f"host-{rank}",
        hostname=here,
        init_sync=False,
    )
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    batches = Batches(
        job.splits.train, seed=0, global_batch=_far.SAMPLES * world_size, worker=rank, num_workers=world_size
    )
    ends = []
    with DiLoCo(
        manager, [model], optimizers[-1], outer, sync_every=order["every"], pin_memory=False, use_bucketization=True
    ):
        for _, (micro,) in zip(range(order["steps"]), batches, strict=False):
            tokens = micro.batch["input_ids"]
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:  # the last one's hooks agree
                optimizer.step()
                optimizer.zero_grad()
            ends.append(time.monotonic())
    print(json.dumps({"ends": ends, "committed": manager.current_step()}), flush=True)
    time.sleep(5.0 if rank == 0 else 0.0)  # the others leave first
    manager.shutdown(wait=False)
    if lighthouse is not None:
        lighthouse.shutdown()
    del store


if __name__ == "__main__":
    main()

"""Clients one after the other in plain torch, in as many processes as are asked for, each with as many threads."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))
import _clients


def work(rank: int, processes: int, threads: int, folder: str, begun: float) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    work = _clients.read(Path(folder))
    model = work.model()
    agreed = {name: p.detach().clone() for name, p in model.named_parameters()}
    # Long clients first, each to whoever has the least to do.
    mine, busy = [], [0] * processes
    for client in sorted(range(work.num_clients), key=lambda client: -work.samples(client)):
        who = busy.index(min(busy))
        busy[who] += work.samples(client)
        mine += [client] * (who == rank)
    total = sum(map(work.samples, range(work.num_clients)))
    seconds, setup_s = [], time.time() - begun
    for number in range(len(work.batches)):
        dist.barrier()
        begin = time.perf_counter()
        sums = {name: torch.zeros_like(p) for name, p in agreed.items()}
        for client in mine:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(agreed[name])
            _clients.train_one(model, work, number, client)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    sums[name].add_(p, alpha=work.samples(client) / total)
        for tensor in sums.values():
            dist.all_reduce(tensor)
        agreed = sums
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        _clients.finish(Path(folder), agreed, seconds, setup_s)


if __name__ == "__main__":
    folder, processes, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    mp.spawn(work, args=(processes, threads, folder, time.time()), nprocs=processes)

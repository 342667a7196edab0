"""Ray Train's TorchTrainer on this machine, Ray's own start included: `python ray_train.py ...`.

The dashboard and usage statistics are off: they would only slow it down.
"""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import time
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import _work


def train_loop(config: dict[str, Any]) -> None:
    import torch
    import torch.nn.functional as F
    from ray import train
    from ray.train.torch import prepare_model

    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    work, options = config["work"], {"gradient_as_bucket_view": True, "static_graph": True}
    splits = _work.prepared(work)
    model = prepare_model(_work.module(work, splits), parallel_strategy_kwargs=options)
    optimizer = torch.optim.AdamW(_work.decay_groups(model), lr=_work.LR, betas=_work.BETAS, fused=True)
    batches = _work.batches(work, splits, rank, world_size)

    ends, losses = [], []
    for _ in range(config["steps"]):
        tokens = next(batches)["input_ids"]
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _work.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
        ends.append(time.time())
    losses = _work.mean_of_workers(losses)
    if rank == 0:
        _work.leave_trace(model, ends, losses, folder=config["folder"])


def main() -> None:
    args = _work.arguments()
    folder = Path.cwd()
    ray.init(num_cpus=args.workers, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"work": args.work, "steps": args.steps, "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=args.workers),
        run_config=RunConfig(storage_path=str(folder / "ray")),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main()

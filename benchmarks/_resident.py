"""What a worker of `memory.py` does: take a few steps, and watch how much memory this process alone comes to hold."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland, enter
from konvoi.job import models, objectives, optimizers, schedules
from konvoi.job.job import Job
from konvoi.learner import Learner
from konvoi.plan.island import Island
from konvoi.values import MicroBatch

STEPS = 3
VOCAB, SEQ, SAMPLES = 257, 32, 2  # few tokens: it is the states that are weighed


@dataclass(frozen=True)
class Shape:
    depth: int = 8
    width: int = 768

    def recipe(self) -> models.GPT:
        return models.gpt(depth=self.depth, width=self.width, num_heads=self.width // 64, vocab_size=VOCAB, seq_len=SEQ)


def own_bytes() -> int:
    """Resident pages of this process; of those that it holds in common with others, its share."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024


class Watch:
    """The most memory inside the block, above what there was before it."""

    def __enter__(self) -> Watch:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = self.most = own_bytes()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.is_over.wait(0.002):
            self.look()

    def look(self) -> None:
        self.most = max(self.most, own_bytes())

    def __exit__(self, *_: object) -> None:
        self.look()
        self.is_over.set()
        self.thread.join()

    @property
    def peak(self) -> int:
        return self.most - self.before


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, VOCAB, (SAMPLES, SEQ + 1), generator=generator)}


def measure(place: Place, payload: tuple[Shape, Island]) -> int:
    """The peak in bytes of `STEPS` steps under a plan, building the model included."""
    shape, plan = payload
    with enter(place, plan) as island:
        _train(island, Shape(depth=shape.depth, width=128))
        with Watch() as watch:
            _train(island, shape)
        return watch.peak


def _train(island: LiveIsland, shape: Shape) -> None:
    job = Job(
        model=shape.recipe(),
        data=None,
        objective=objectives.next_token(),
        optimizer=optimizers.adamw(),
        schedule=schedules.constant(),
        global_batch=SAMPLES,
        steps=STEPS,
    )
    micro = [MicroBatch(batch()) for _ in range(island.plan.num_micro_batches(8))]
    parts = island.split(job.model, job.objective, seed=0, example=batch())
    learner = Learner(job, parts, STEPS)
    for step in range(1, STEPS + 1):
        learner.lr(step)
        gradient = island.forward_backward(parts, micro)
        island.clip(parts, gradient, 1.0)
        learner.step()
    island.gather_objects(None)  # all still hold what they hold in common: each weighs its share


def measure_fsdp2(place: Place, payload: tuple[Shape, Island]) -> int:
    """Plain FSDP2, each block and the root a unit, as torch's own tutorial has it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape, plan = payload

    def train(shape: Shape) -> None:
        with torch.device("meta"):
            model = shape.recipe()()
        for block in (*model.blocks, model):
            fully_shard(block, mesh=mesh)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.to_local(), std=0.02)  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(STEPS):
            logits = model(inputs[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    with enter(place, plan):  # which gives freed memory back, as for our own
        mesh, inputs = init_device_mesh("cpu", (plan.fsdp,)), batch()["input_ids"]
        train(Shape(depth=shape.depth, width=128))
        with Watch() as watch:
            train(shape)
        return watch.peak


def measure_deepspeed(place: Place, payload: tuple[Shape, Island]) -> int:
    """DeepSpeed's ZeRO of the plan's stage, in fp32, with torch's own AdamW."""
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(place.worker),
        "LOCAL_RANK": str(place.local_worker),
        "WORLD_SIZE": str(place.num_workers),
    }
    shape, plan = payload

    def train(shape: Shape) -> None:
        config = {
            "train_micro_batch_size_per_gpu": SAMPLES,
            "zero_optimization": {"stage": plan.zero},
            "gradient_clipping": 1.0,
            "zero_allow_untested_optimizer": True,
        }
        is_cut = plan.zero == 3
        with deepspeed.zero.Init(config_dict_or_path=config) if is_cut else contextlib.nullcontext():
            model = shape.recipe()()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.ds_tensor if is_cut else parameter.data, std=0.02)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for _ in range(STEPS):
            logits = engine(inputs[:, :-1])
            engine.backward(torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten()))
            engine.step()

    with enter(place, plan):
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
            import deepspeed

            inputs = batch()["input_ids"]
            deepspeed.init_distributed(dist_backend="gloo")
            train(Shape(depth=shape.depth, width=128))
            with Watch() as watch:
                train(shape)
        return watch.peak


MEASURES: dict[str, Callable[[Place, tuple[Shape, Island]], int]] = {
    "konvoi": measure,
    "fsdp2": measure_fsdp2,
    "deepspeed": measure_deepspeed,
}

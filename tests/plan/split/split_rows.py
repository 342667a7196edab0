"""What the tests of splitting send to the pool's workers."""

import contextlib
import copy
import functools
import gc
import os
import weakref
from pathlib import Path
from unittest.mock import patch

import torch
import torch._dynamo
from torch import nn
from torch.distributed.tensor import DTensor

from konvoi.island import LiveIsland, enter
from konvoi.plan.split import blocks, replicate, same_machine
from konvoi.plan.split.materialize import build
from konvoi.plan.split.parts import single
from konvoi.proof.cases import Plain, case
from konvoi.values import MicroBatch


def sum_of_squares(model, batch):
    output = model(batch["inputs"])
    return output.square().sum(), output.new_tensor(len(output))


def fast_and_slow(place, how):
    """Gradients of a few steps by `Buckets` and by its slow twin, on the same weights and batches.

    Returns (fast, slow, number of buckets). `how` may have: accumulate, forget (the user's zero_grad between steps),
    apart (as if the workers were on several machines).
    """
    from konvoi.plan.island import Island

    # 64-bit numbers: a bucket's sum may be taken in another order than a parameter's, where there are three workers.
    small = patch.multiple(replicate, BUCKET_BYTES=1000, FIRST_BUCKET_BYTES=300)
    blind = how.get("apart") and place.worker == place.num_workers - 1
    seen = patch.object(same_machine._Memory, "is_seen", lambda memory: False) if blind else contextlib.nullcontext()
    with enter(place, Island(dp=place.num_workers)) as island, small, seen:
        fast_model = build(Plain, 0, island.device, torch.float64)
        slow_model = copy.deepcopy(fast_model)
        group = island.mesh.get_group("dp")
        fast = replicate.replicate(single(fast_model, sum_of_squares), group)
        assert (fast.begin.__self__.common is None) == how.get("apart", False)
        slow = single(slow_model, sum_of_squares)
        found = [], []
        for step in range(3):
            torch.manual_seed(100 * step + place.worker)
            batches = [{"inputs": torch.randn(2, 64, dtype=torch.float64)} for _ in range(how.get("accumulate", 1))]
            micro = [MicroBatch(batch) for batch in batches]
            for parts in (fast, slow):
                parts.begin()
                parts.forward_backward(micro, 1.0, lambda sums: None)
                parts.finish()
            trainable = [p for p in slow_model.parameters() if p.requires_grad]
            replicate.reduce_one_by_one(trainable, group)
            for model, kept in zip((fast_model, slow_model), found, strict=True):
                kept.append({n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.requires_grad})
                assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
            if how.get("forget"):
                fast_model.zero_grad(set_to_none=True)
        assert sum(flat.numel() for flat in fast.gradients()) == sum(p.numel() for p in trainable)
        return *found, len(fast.gradients())


def sums_in_common(place, payload):
    """What `Common` gives for a few shapes and types, and which files of no name the worker still holds."""
    from konvoi.plan.island import Island

    shapes = [(1, torch.bfloat16), (7, torch.float32), (1000, torch.float64), (0, torch.float32), (5, torch.float16)]
    with enter(place, Island(dp=place.num_workers)) as island:
        common = same_machine.in_common(shapes, island.mesh.get_group("dp"))
        for turn in range(1, 4):
            for number, tensor in enumerate(common.own):
                tensor.fill_(turn * (number + 1) * 2**place.worker)
            common.add_up()
            found = [set(tensor.tolist()) for tensor in common.own]
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return found, [name for name in files if "konvoi-" in name]


def is_freed(place, payload):
    """Whether the buckets of a replicated model, as large as itself, go when nobody holds it any more."""
    from konvoi.plan.island import Island

    with enter(place, Island(dp=place.num_workers)) as island:
        model = build(Plain, 0, island.device, torch.float64)
        parts = replicate.replicate(single(model, sum_of_squares), island.mesh.get_group("dp"))
        held = weakref.ref(parts.begin.__self__)
        del model, parts
        gc.collect()
        return held() is None


def num_threads(place, payload):
    return len(list(Path("/proc/self/task").iterdir()))


def first_weights(place, payload):
    """The weights that a case begins with, whole."""
    name, plan = payload
    with enter(place, plan) as island:
        job = case(name).job
        parts = island.split(job.model, job.objective, seed=job.seed)
        return {n: _whole(p.detach()).numpy().copy() for n, p in parts.named_parameters()}


def num_graphs(place, payload):
    """How many graphs torch.compile builds for a stack of equal blocks, in one forward and backward pass."""
    kind, is_recomputed = payload
    block = {
        "own": Block,
        "torch's": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()),
    }[kind]
    module = nn.Sequential(*(block() for _ in range(12)))
    inputs = torch.randn(4, 8)
    expected = _gradients(module, inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if is_recomputed:
        blocks.recompute(list(module))
    with patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager")):  # inductor takes long
        blocks.compile_blocks(list(module))
    found = _gradients(module, inputs)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


def _gradients(module, inputs):
    module.zero_grad()
    module(inputs).square().sum().backward()
    return [p.grad.clone() for p in module.parameters()]


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def dtypes_of_inputs(place, plan):
    """The dtypes of what an island makes of float32 and int64 inputs."""
    island = LiveIsland(place, plan, torch.device("cpu"), None)
    batch = {"inputs": torch.zeros(2), "labels": torch.zeros(2, dtype=torch.int64), "pair": (torch.zeros(1), "x")}
    moved = island.to_device(MicroBatch(batch)).batch
    return str(moved["inputs"].dtype), str(moved["labels"].dtype), str(moved["pair"][0].dtype)

"""The proof that every way of splitting computes the same: rows that compare a plan with one process.

In float64, with AdamW, weight decay, clipping that acts, and a learning rate at which the loss falls: losses of every
step, the first step's gradients and the final weights agree to 1e-9. `trace` is what a worker does for a row; tests
and `konvoi doctor --self-test` send it to sub-meshes of one pool of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland, enter
from konvoi.job import models, objectives, optimizers, schedules
from konvoi.job.data.loader import Batches
from konvoi.job.job import Job
from konvoi.learner import Learner
from konvoi.plan.island import Island
from konvoi.values import MicroBatch

TOLERANCE = 1e-9  # relative, in float64
TOLERANCE_FP32 = 1e-5
VOCAB = 257  # odd: no axis divides it
SEQ = 12


@dataclass(frozen=True)
class Tokens:
    """Learnable made-up text, most of whose labels are ignored where `ragged`: a map-style data set."""

    num_samples: int = 64
    ragged: bool = False

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        ids = (random.integers(0, VOCAB) + np.arange(SEQ + 1) * random.integers(1, 4)) % VOCAB
        labels = ids.copy()
        if self.ragged:
            # Whole samples without a label, others with one or two: a mean of means would be far off.
            labels[random.random(SEQ + 1) < (1.0 if index % 5 == 0 else 0.8)] = -100
        return {"input_ids": ids.astype(np.int64), "labels": labels.astype(np.int64)}


@dataclass(frozen=True)
class Images:
    """Made-up images whose class is the brightest quadrant."""

    num_samples: int = 64

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        label = int(random.integers(0, 4))
        image = random.random((1, 8, 8)) * 0.5
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.5
        return {"inputs": image.astype(np.float64), "labels": np.int64(label)}


@dataclass(frozen=True)
class Case:
    """What is learned in a row."""

    name: str
    job: Job
    steps: int = 6


def case(name: str, **changes: Any) -> Case:
    """One of the cases by name, with fields of its job changed. Raises: KeyError."""
    optimizer = optimizers.adamw(lr=2e-2, weight_decay=0.1)
    common: dict[str, Any] = {
        "optimizer": optimizer,
        "schedule": schedules.constant(),
        "global_batch": 12,
        "clip_grad_norm": 0.5,
        "seed": 3,
        "steps": 6,
    }
    gpt = models.gpt(depth=2, width=16, num_heads=2, num_kv_heads=1, vocab_size=VOCAB, seq_len=SEQ)
    jobs = {
        "gpt": lambda: Job(model=gpt, data=Tokens(), objective=objectives.next_token(), **common | changes),
        "gpt ragged": lambda: Job(model=gpt, data=Tokens(ragged=True), objective=objectives.next_token(), **common | changes),
        "gpt tied": lambda: Job(
            model=dataclasses.replace(gpt, tie_embeddings=True), data=Tokens(), objective=objectives.next_token(), **common | changes
        ),
        "cnn": lambda: Job(
            model=models.cnn(depth=2, channels=8, input_shape=(1, 8, 8), num_outputs=4), data=Images(), objective=objectives.classification(), **common | changes
        ),
        "mlp": lambda: Job(model=models.mlp((16, 16), input_shape=(1, 8, 8), num_outputs=4), data=Images(), objective=objectives.classification(), **common | changes),
    }
    return Case(name, jobs[name]())


@dataclass(frozen=True)
class Row:
    """One line of the table: this case under this plan equals one process."""

    case: str
    plan: Island
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        plan = ",".join(f"{key}={value}" for key, value in self.plan.describe().items())
        return " ".join([self.case, *(f"{key}={value}" for key, value in self.changes), plan])

    def of(self) -> Case:
        return case(self.case, **dict(self.changes))


def table(max_workers: int = 4) -> list[Row]:
    """The rows for up to `max_workers` workers."""
    splits = [Island(dp=n) for n in (1, 2, 3, 4)] + [Island(fsdp=n) for n in (2, 3, 4)] + [Island(dp=2, fsdp=2)]
    rows = [Row("gpt", plan) for plan in splits]
    for plan in (Island(dp=2), Island(fsdp=2)):
        rows += [Row("gpt", dataclasses.replace(plan, accumulate=n)) for n in (2, 4)]
        rows += [Row("gpt ragged", plan), Row("gpt ragged", dataclasses.replace(plan, accumulate=2)), Row("gpt tied", plan)]
        rows += [Row("gpt", dataclasses.replace(plan, checkpoint_activations=True)), Row("cnn", plan), Row("mlp", plan)]
    rows += [Row("gpt", Island(accumulate=n)) for n in (2, 4)]
    rows += [Row("gpt ragged", plan, (("global_batch", 10),)) for plan in (Island(dp=4), Island(fsdp=4), Island(dp=3, accumulate=2))]
    return [row for row in rows if row.plan.num_workers <= max_workers]


@dataclass(frozen=True)
class Trace:
    """What a row computed: the same on every worker."""

    losses: list[float]
    norms: list[float]
    gradients: Mapping[str, np.ndarray[Any, Any]]  # of the first step, clipped, whole
    weights: Mapping[str, np.ndarray[Any, Any]]  # after the last step, whole


def trace(place: Place, payload: tuple[Case, Island]) -> Trace:
    """Take a case's steps under a plan, as one worker: the same calls as the loop's."""
    found, plan = payload
    job = found.job
    with enter(place, plan) as island:
        parts = island.split(job.model, job.objective, seed=job.seed, freeze=job.freeze)
        learner = Learner(job, parts, found.steps)
        losses, norms, gradients = [], [], {}
        batches = Batches(
            job.data, seed=job.seed, global_batch=job.global_batch, worker=place.worker, num_workers=place.num_workers, accumulate=plan.accumulate
        )
        for step, micro in zip(range(1, found.steps + 1), batches, strict=False):
            learner.lr(step)
            gradient = island.forward_backward(parts, [_moved(island, item) for item in micro])
            island.clip(parts, gradient, job.clip_grad_norm)
            if step == 1:
                gradients = {name: _whole(p.grad) for name, p in learner.parameters.items() if p.grad is not None}
            learner.step()
            losses.append(gradient.loss)
            norms.append(gradient.norm)
        weights = {name: _whole(p.detach()) for name, p in learner.parameters.items()}
    return Trace(losses, norms, gradients, weights)


def _moved(island: LiveIsland, item: MicroBatch) -> MicroBatch:
    return island.to_device(item)


def _whole(tensor: Tensor) -> np.ndarray[Any, Any]:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.cpu().double().numpy().copy()


def differences(found: Trace, expected: Trace, tolerance: float = TOLERANCE, *, only_losses: bool = False) -> list[str]:
    """What differs by more than the tolerance, relative to the largest element; empty where the two are equal."""
    pairs: Sequence[tuple[str, Any, Any]] = [("losses", found.losses, expected.losses), ("norms", found.norms, expected.norms)]
    if not only_losses:
        for what in ("gradients", "weights"):
            mine, other = getattr(found, what), getattr(expected, what)
            if mine.keys() != other.keys():
                return [f"{what}: other names: {sorted(mine.keys() ^ other.keys())[:3]}"]
            pairs = [*pairs, *((f"{what} {name}", mine[name], other[name]) for name in other)]
    else:
        pairs = pairs[:1]
    return [text for name, a, b in pairs if (text := _difference(name, np.asarray(a), np.asarray(b), tolerance))]


def _difference(name: str, found: Any, expected: Any, tolerance: float) -> str:
    if found.shape != expected.shape:
        return f"{name}: shape {found.shape} instead of {expected.shape}"
    error = float(np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-12))
    return "" if error <= tolerance else f"{name}: relative difference {error:.1e}"


def is_a_fair_test(reference: Trace, max_norm: float) -> bool:
    """Whether the case shows errors at all: it learns (a fifth off the loss), and clipping acts in half of the steps."""
    clipped = sum(norm > max_norm for norm in reference.norms)
    return reference.losses[-1] < 0.8 * reference.losses[0] and clipped >= len(reference.norms) / 2

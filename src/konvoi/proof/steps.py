"""What a worker does for a row, and how two such traces are compared."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, _redistribute, debug
from torch.distributed.tensor._collective_utils import MeshTopoInfo

from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland, enter
from konvoi.job.data.collate import collate
from konvoi.job.data.loader import Batches, eval_batches
from konvoi.learner import Learner
from konvoi.plan.island import Island
from konvoi.plan.split.parts import Parts
from konvoi.proof.cases import Case

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Trace:
    """What a row computed: the same on every worker."""

    losses: list[float]
    norms: list[float]  # of the mean gradient, before clipping
    gradients: Arrays  # of the first step, clipped, whole
    weights: Arrays  # after the last step, whole; averaged ones as "ema.*"
    held_out: list[float]  # the loss over all samples, at the end


def trace(place: Place, payload: tuple[Case, Island]) -> Trace:
    """Take a case's steps under a plan, as one worker: the same calls as the loop's."""
    found = _trace(place, payload)
    let_go()
    return found


def let_go() -> None:
    """End what a row's process groups have left in a worker that goes on. torch's caches remember their meshes, and the
    threads of each group wake up hundreds of times a second."""
    debug._clear_sharding_prop_cache()
    _redistribute._gen_transform_infos.cache_clear()
    _redistribute.clear_redistribute_planner_cache()
    MeshTopoInfo.build_from_mesh.cache_clear()
    gc.collect()


def _trace(place: Place, payload: tuple[Case, Island]) -> Trace:
    found, plan = payload
    job = found.job
    with enter(place, plan) as island:
        example = (job.collate or collate)([job.data[0]])
        parts = island.split(job.model, job.objective, seed=job.seed, freeze=job.freeze, example=example)
        learner = Learner(job, parts, found.steps)
        losses, norms, gradients = [], [], {}
        batches = Batches(
            job.data,
            seed=job.seed,
            global_batch=job.global_batch,
            worker=island.part,
            num_workers=plan.num_parts,
            accumulate=plan.num_micro_batches(job.global_batch),
        )
        for step, micro in zip(range(1, found.steps + 1), batches, strict=False):
            learner.lr(step)
            gradient = island.forward_backward(parts, [island.to_device(item) for item in micro])
            island.clip(parts, gradient, job.clip_grad_norm)
            if step == 1:
                gradients = {name: _whole(p.grad) for name, p in learner.parameters.items() if p.grad is not None}
            learner.step()
            losses.append(gradient.loss)
            norms.append(gradient.norm)
        weights = {name: _whole(p.detach()) for name, p in learner.parameters.items()}
        weights |= {f"ema.{name}": _whole(tensor) for name, tensor in learner.average.items()}
        gradients, weights = island.of_all_stages(gradients), island.of_all_stages(weights)
        return Trace(losses, norms, gradients, weights, [_held_out(island, parts, found)])


def _held_out(island: LiveIsland, parts: Parts, found: Case) -> float:
    job = found.job
    # More than one batch, the last with fewer samples than some plans have workers.
    items = eval_batches(job.data, batch=8, worker=island.part, num_workers=island.plan.num_parts)

    def measure(module: nn.Module, batch: Any) -> dict[str, Tensor]:
        return dict(zip(("loss", "weight"), job.objective(module, batch), strict=True))

    sums = island.sums(parts, (island.to_device(item) for item in items), measure)
    return sums["loss"] / sums["weight"]


def _whole(tensor: Tensor) -> np.ndarray[Any, Any]:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    array: np.ndarray[Any, Any] = whole.cpu().double().numpy().copy()
    return array


def differences(
    found: Trace, expected: Trace, tolerance: float, *, only_losses: bool = False, floor: float = 1e-12
) -> list[str]:
    """What differs by more than the tolerance, relative to the largest element or `floor`; empty where all is equal."""
    return list(_differences(found, expected, tolerance, only_losses, floor))


def _differences(found: Trace, expected: Trace, tolerance: float, only_losses: bool, floor: float) -> Iterator[str]:
    for what in ("losses",) if only_losses else ("losses", "norms", "held_out"):
        yield from _difference(
            what, np.asarray(getattr(found, what)), np.asarray(getattr(expected, what)), tolerance, floor
        )
    for what in () if only_losses else ("gradients", "weights"):
        mine, other = getattr(found, what), getattr(expected, what)
        for name in sorted(mine.keys() | other.keys()):
            if name in mine and name in other:
                yield from _difference(f"{what} {name}", mine[name], other[name], tolerance, floor)
            else:
                yield f"{what} {name}: only on one side"


def _difference(name: str, found: Any, expected: Any, tolerance: float, floor: float) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"{name}: shape {found.shape} instead of {expected.shape}"
        return
    error = float(np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), floor))
    if not error <= tolerance:  # nan, too
        yield f"{name}: relative difference {error:.1e}"


def is_a_fair_test(reference: Trace, max_norm: float) -> bool:
    """Whether a case shows errors at all: it learns (a fifth off the loss), and clipping acts in half of the steps."""
    clipped = sum(norm > max_norm for norm in reference.norms)
    return reference.losses[-1] < 0.8 * reference.losses[0] and clipped >= len(reference.norms) / 2

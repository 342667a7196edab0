"""The island as a value: workers that hold one copy of the model and agree exactly at every step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from konvoi.errors import PlanError, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True, kw_only=True)
class Island:
    """How one island splits its work. `dp * fsdp` workers; each axis left at 1 is absent.

    - `dp`: the batch is split, every worker holds the whole model (data parallel).
    - `fsdp`: the batch is split, parameters, gradients and optimizer state too (ZeRO stage 3, arXiv 1910.02054;
      torch's FSDP2). `dp` with `fsdp` is HSDP: sharded inside a group, replicated between groups. With `fsdp=1` a
      single worker holds everything.
    - `accumulate`: forward and backward passes per optimizer step; the global batch belongs to the job and stays.
    - `precision`: of the forward and backward pass; parameters, gradients' sums and optimizer state stay in fp32
      ("fp64": everything in float64). fp16 scales the loss (arXiv 1710.03740, section 3.2).
    - `checkpoint_activations`: recompute each repeated block in the backward pass instead of keeping its inside.
    - `compile`: torch.compile for each repeated block.

    >>> Island(dp=2, fsdp=2).num_workers
    4
    """

    dp: int = 1
    fsdp: int = 1
    accumulate: int = 1
    precision: str = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PlanError(f"{name} is a number of at least 1", found=repr(value))
        if self.precision not in PRECISIONS:
            raise PlanError(
                "unknown precision", found=repr(self.precision), hint=did_you_mean(str(self.precision), PRECISIONS)
            )

    @property
    def num_workers(self) -> int:
        return self.dp * self.fsdp

    def describe(self) -> dict[str, Any]:
        """The fields that differ from their defaults; `{"dp": 1}` for a single worker."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return changed or {"dp": 1}

    def check(self, *, num_workers: int, global_batch: int, num_samples: int | None) -> None:
        """Everything about this plan that can be known before a worker starts. Raises: PlanError."""
        if self.num_workers != num_workers:
            raise PlanError(
                "the plan and the fleet differ in size",
                found=f"dp={self.dp} x fsdp={self.fsdp} = {self.num_workers} workers on a fleet of {num_workers}",
                hint=f"plan for {num_workers}, e.g. dp={num_workers}, or ask the fleet for {self.num_workers} workers",
            )
        forwards = self.num_workers * self.accumulate
        if global_batch < forwards:
            raise PlanError(
                "the global batch has too few samples for this plan",
                found=f"{global_batch} samples for {self.num_workers} workers x {self.accumulate} forward passes",
                expected=f"at least {forwards}, one a pass",
                hint=f"global_batch={forwards} on the job, or fewer workers",
            )
        if num_samples is not None and num_samples < self.num_workers:
            raise PlanError("fewer samples than workers", found=f"{num_samples} samples, {self.num_workers} workers")


def parse(text: str) -> Island:
    """A plan from the command line: `dp=2,fsdp=2,precision=bf16,compile`. Raises: PlanError.

    >>> parse("dp=2,accumulate=4")
    Island(dp=2, fsdp=1, accumulate=4, precision='fp32', checkpoint_activations=False, compile=False)
    """
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Island)}
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if name not in kinds:
            raise PlanError("unknown field of a plan", found=name, hint=did_you_mean(name, kinds))
        if name in values:
            raise PlanError(f"{name} is given twice", found=text)
        values[name] = _read(name, value, kinds[name])
    return Island(**values)


def _read(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in ("", "true", "false"):
            raise PlanError(f"{name} is true or false", found=value)
        return value.lower() != "false"
    if kind is int:
        try:
            return int(value)
        except ValueError:
            raise PlanError(f"{name} is a number", found=repr(value), hint=f"{name}=2") from None
    return value

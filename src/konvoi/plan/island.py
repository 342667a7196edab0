"""The island as a value: workers that hold one copy of the model and agree exactly at every step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from konvoi.errors import PlanError, did_you_mean

AXES = ("pp", "dp", "fsdp", "tp")  # outermost first
SCHEDULES = ("1f1b", "gpipe", "interleaved", "zbv")
TWO_STAGES = ("interleaved", "zbv")  # a worker holds two
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True, kw_only=True)
class Island:
    """How one island splits its work. `dp * fsdp * tp * pp` workers; each axis left at 1 is absent.

    - `dp`: the batch is split, every worker holds the whole model (data parallel).
    - `fsdp`: the batch is split, parameters, gradients and optimizer state too (ZeRO, arXiv 1910.02054; torch's
      FSDP2). `dp` with `fsdp` is HSDP: sharded inside a group, replicated between groups. With `fsdp=1` a single
      worker holds everything.
    - `zero`: what `fsdp` keeps sharded during a step: 1 the optimizer's state, 2 gradients, too, 3 parameters, too,
      which are then gathered block by block. docs/memory.md says what each holds when, and what it sends.
    - `offload`: under `fsdp`, what is sharded lies in the host's memory, where the optimizer steps, too.
    - `tp`: the matrices of each block are split, and attention by its heads (tensor parallel, arXiv 1909.08053).
    - `sequence_parallel`: under tp, what lies between the blocks is split along the sequence (arXiv 2205.05198).
    - `pp`: the model's repeated blocks are split into stages, through which micro-batches flow (pipeline parallel).
    - `schedule`: of a pipeline: "gpipe", "1f1b", or with two stages a worker "interleaved", "zbv" (zero bubble).
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
    zero: int = 3
    offload: bool = False
    tp: int = 1
    sequence_parallel: bool = False
    pp: int = 1
    schedule: str = "1f1b"
    accumulate: int = 1
    precision: str = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in (*AXES, "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PlanError(f"{name} is a number of at least 1", found=repr(value))
        if self.precision not in PRECISIONS:
            raise PlanError(
                "unknown precision", found=repr(self.precision), hint=did_you_mean(str(self.precision), PRECISIONS)
            )
        if self.zero not in (1, 2, 3):
            raise PlanError("zero is a stage of ZeRO", found=repr(self.zero), expected="1, 2 or 3")
        if self.fsdp == 1 and (self.zero != 3 or self.offload):
            field = "offload" if self.offload else f"zero={self.zero}"
            raise PlanError("zero and offload are ways of fsdp", found="fsdp=1", hint=f"fsdp=2,{field}")
        if self.sequence_parallel and self.tp == 1:
            raise PlanError("sequence_parallel is a way of tp", found="tp=1", hint="tp=2,sequence_parallel")
        if self.schedule not in SCHEDULES:
            raise PlanError(
                "unknown schedule", found=repr(self.schedule), hint=did_you_mean(str(self.schedule), SCHEDULES)
            )

    @property
    def num_workers(self) -> int:
        return self.num_parts * self.tp * self.pp

    @property
    def num_parts(self) -> int:
        """Into how many parts a batch is cut: the workers of one pipeline, and of one tp group, share theirs."""
        return self.dp * self.fsdp

    @property
    def num_stages(self) -> int:
        return self.pp * (2 if self.schedule in TWO_STAGES else 1)

    def num_micro_batches(self, global_batch: int) -> int:
        """Forward and backward passes per step. Under pp and unless `accumulate` says it: the most, up to four a
        stage, that cut a worker's part evenly.
        """
        if self.pp == 1 or self.accumulate > 1:
            return self.accumulate
        part = global_batch // self.num_parts
        step = self.pp if self.schedule == "interleaved" else 1  # whole rounds
        return next((n for n in range(min(part, 4 * self.num_stages), 0, -1) if part % n == 0 and n % step == 0), 1)

    def bubble(self, num_micro_batches: int) -> float:
        """The share of a step that a worker idles by the schedule alone, where all stages take equal time (arXiv
        2104.04473 sections 2.2.1 and 2.2.2). ZB-V's is smaller than this (arXiv 2401.10241 section 6).
        """
        chunks = num_micro_batches * self.num_stages / self.pp
        return (self.pp - 1) / (chunks + self.pp - 1)

    def derived(self, global_batch: int) -> tuple[str, ...]:
        """What this batch decides, as a person reads it.

        >>> Island(pp=2).derived(16)
        ('micro-batches = 8 of 2 samples, through 2 stages: each worker idles 11% of a step by the schedule alone',)
        """
        if self.pp == 1:
            return ()
        number = self.num_micro_batches(global_batch)
        size = global_batch // (self.num_parts * number)
        most = "at most " if self.schedule == "zbv" else ""
        idle = f"each worker idles {most}{self.bubble(number):.0%} of a step by the schedule alone"
        return (f"micro-batches = {number} of {size} samples, through {self.num_stages} stages: {idle}",)

    def describe(self) -> dict[str, Any]:
        """The fields that differ from their defaults; `{"dp": 1}` for a single worker."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return changed or {"dp": 1}

    def check(self, *, num_workers: int, global_batch: int, num_samples: int | None) -> None:
        """Everything about this plan that can be known before a worker starts. Raises: PlanError."""
        self.check_workers(num_workers)
        self.check_batch(global_batch)
        if num_samples is not None and num_samples < self.num_parts:
            raise PlanError("fewer samples than workers", found=f"{num_samples} samples, {self.num_parts} workers")

    def check_workers(self, num_workers: int) -> None:
        """What holds for any batch. Raises: PlanError."""
        if self.num_workers != num_workers:
            shown = [name for name in AXES if getattr(self, name) > 1 or name in ("dp", "fsdp")]
            axes = " x ".join(f"{name}={getattr(self, name)}" for name in shown)
            raise PlanError(
                "the plan and the fleet differ in size",
                found=f"{axes} = {self.num_workers} workers on a fleet of {num_workers}",
                hint=f"plan for {num_workers}, e.g. dp={num_workers}, or ask the fleet for {self.num_workers} workers",
            )
        if self.schedule == "zbv" and self.fsdp > 1:
            raise PlanError(
                "a zero-bubble schedule with fsdp would compute wrong gradients (torch 2.13)",
                found=f"schedule=zbv, fsdp={self.fsdp}",
                hint="schedule=interleaved with fsdp, or zbv with dp",
            )

    def check_batch(self, global_batch: int) -> None:
        """Whether this plan can cut so many samples into its parts and passes. Raises: PlanError."""
        forwards = self.num_parts * self.accumulate
        if global_batch < forwards:
            raise PlanError(
                "the global batch has too few samples for this plan",
                found=f"{global_batch} samples for {self.num_parts} workers x {self.accumulate} forward passes",
                expected=f"at least {forwards}, one a pass",
                hint=f"global_batch={forwards} on the job, or fewer workers",
            )
        if self.pp > 1:
            self._check_pipeline(global_batch)

    def _check_pipeline(self, global_batch: int) -> None:
        number = self.num_micro_batches(global_batch)
        if global_batch % (self.num_parts * number):
            raise PlanError(
                "a pipeline's micro-batches must be of one size",
                found=f"a global batch of {global_batch} for {self.num_parts} x {number} micro-batches",
                hint=f"global_batch={-(-global_batch // (self.num_parts * number)) * self.num_parts * number}",
            )
        if self.schedule == "interleaved" and number % self.pp:
            raise PlanError(
                "an interleaved schedule takes whole rounds of micro-batches",
                found=f"{number} micro-batches for pp={self.pp}",
                hint=f"accumulate={-(-number // self.pp) * self.pp}, or schedule=1f1b",
            )
        if number < self.num_stages:
            raise PlanError(
                "too few micro-batches for this pipeline",
                found=f"{number} for {self.num_stages} stages: it would idle {self.bubble(number):.0%} of the time",
                expected=f"at least {self.num_stages}",
                hint=f"global_batch={self.num_parts * 4 * self.num_stages} on the job, or fewer stages",
            )


def parse(text: str) -> Island:
    """A plan from the command line: `dp=2,fsdp=2,precision=bf16,compile`. Raises: PlanError.

    >>> parse("dp=2,accumulate=4") == Island(dp=2, accumulate=4)
    True
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


def as_bool(name: str, value: str) -> bool:
    """A field of a plan as text; its name alone means true. Raises: PlanError."""
    if value.lower() not in ("", "true", "false"):
        raise PlanError(f"{name} is true or false", found=value)
    return value.lower() != "false"


def _read(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        return as_bool(name, value)
    if kind is int:
        try:
            return int(value)
        except ValueError:
            raise PlanError(f"{name} is a number", found=repr(value), hint=f"{name}=2") from None
    return value

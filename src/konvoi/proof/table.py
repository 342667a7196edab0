"""The equivalence table: which case under which plan equals one process, and how closely."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from konvoi.fleet.pool import Pool
from konvoi.job import optimizers
from konvoi.plan.island import SCHEDULES, Island
from konvoi.proof.cases import Case, case
from konvoi.proof.steps import Trace, differences, trace

FP64, FP32 = 1e-9, 1e-5  # relative
BF16 = 3e-2  # bfloat16 has 8 bits: 2^-8 a number, more after a few layers
MUON = 1e-3  # its iteration runs in bfloat16 whatever the parameters are; see optimizers.Muon
ACCELERATOR = 1e-4  # fp32 with atomic sums and other kernels for other shapes


@dataclass(frozen=True)
class Row:
    """One line of the table: this case under this plan equals one process."""

    case: str
    plan: Island
    changes: tuple[tuple[str, Any], ...] = ()  # of the case's job
    tolerance: float = FP64
    only_losses: bool = False  # else gradients, weights, norms and held-out loss, too

    @property
    def name(self) -> str:
        # float64 is the rule here, so only what departs from it is said.
        fields = {"precision": self.plan.precision} | self.plan.describe()
        plan = ",".join(f"{key}={value}" for key, value in fields.items() if value != "fp64")
        changes = (
            f"{key}={type(value).__name__ if dataclasses.is_dataclass(value) else value}" for key, value in self.changes
        )
        return " ".join([self.case, *changes, plan or "one process"])

    @property
    def reference(self) -> Island:
        """The plan of one process that it is held against."""
        return Island(precision="fp64" if self.plan.precision == "fp64" else "fp32")

    def of(self) -> Case:
        return case(self.case, **dict(self.changes))

    def on_accelerator(self) -> Row:
        """The same in fp32: not every accelerator has float64."""
        plan = dataclasses.replace(self.plan, precision="fp32") if self.plan.precision == "fp64" else self.plan
        return dataclasses.replace(self, plan=plan, tolerance=max(self.tolerance, ACCELERATOR), only_losses=True)


def rows(max_workers: int = 4, *, compiled: bool = True, adapters: bool = True) -> list[Row]:
    """The rows for up to `max_workers` workers; without those that compile, or those that need PEFT."""
    one, dp, fsdp = _plan(), _plan(dp=2), _plan(fsdp=2)
    both = (dp, fsdp)
    table = [Row("gpt", _plan(dp=n)) for n in (1, 2, 3, 4)] + [Row("gpt", _plan(fsdp=n)) for n in (2, 3, 4)]
    table += [Row(name, _plan(dp=2, fsdp=2)) for name in ("gpt", "gpt ragged", "gpt tied", "callable")]
    table += [Row("gpt", _but(plan, accumulate=n)) for plan in (one, *both) for n in (2, 4)]
    table += [Row(name, plan) for plan in both for name in ("gpt ragged", "gpt tied", "cnn", "mlp")]
    table += [Row(name, plan) for plan in (*both, _plan(fsdp=3)) for name in ("callable", "instance")]
    table += [Row("gpt ragged", _but(plan, accumulate=2)) for plan in both]
    table += [Row("gpt ragged", plan, _batch(10)) for plan in (_plan(dp=4), _plan(fsdp=4), _plan(dp=3, accumulate=2))]
    table += [Row("gpt", _but(plan, checkpoint_activations=True)) for plan in (one, *both)]
    table += [Row("callable", _but(plan, checkpoint_activations=True, accumulate=2)) for plan in both]
    table += [Row("gpt", plan, (("freeze", ("embed*", "blocks.0.*")),)) for plan in both]
    table += [Row("gpt", plan, (("ema", 0.9),)) for plan in both]
    table += [Row("mlp", plan, _optimizer(optimizers.sgd(lr=0.3, momentum=0.9))) for plan in both]
    table += [Row("gpt", dp, _optimizer(optimizers.muon(adamw=optimizers.adamw(lr=2e-2))), MUON, only_losses=True)]
    splits = (dp, fsdp, _plan(dp=2, fsdp=2), _plan(dp=4, accumulate=2), _plan(fsdp=3))
    table += [Row("gpt", _but(plan, precision="fp32"), (), FP32, only_losses=True) for plan in splits]
    table += [Row("gpt", _but(plan, precision="bf16"), (), BF16, only_losses=True) for plan in (one, *splits[:3])]
    table += [Row("gpt ragged", _but(fsdp, zero=n, accumulate=m)) for n in (1, 2) for m in (1, 2)]
    table += [Row("gpt ragged", _plan(dp=2, fsdp=2, zero=n, accumulate=2)) for n in (1, 2, 3)]
    table += [Row(name, _but(fsdp, offload=True)) for name in ("gpt", "callable")]
    table += [Row("gpt deep", _plan(fsdp=2, pp=2, zero=1)), Row("gpt heads", _plan(fsdp=2, tp=2, zero=2))]
    table += _pipelines() + _tensors()
    if compiled:
        tensors = _plan(tp=2), _plan(tp=2, sequence_parallel=True, checkpoint_activations=True), _plan(fsdp=2, tp=2)
        table += [Row("gpt", _but(plan, compile=True)) for plan in tensors]
        pipelines = _plan(pp=2, schedule="zbv"), _plan(fsdp=2, pp=2)
        table += [Row("gpt deep", _but(plan, compile=True)) for plan in pipelines]
        table += [Row(name, _but(plan, compile=True)) for name in ("callable", "gpt") for plan in both]
        table += [Row("callable", _but(fsdp, compile=True, checkpoint_activations=True))]
    if adapters:
        table += _adapters()
    return [row for row in table if row.plan.num_workers <= max_workers]


def _adapters() -> list[Row]:
    tp, pp = _plan(tp=2), _plan(pp=2)
    ways = [_plan(dp=2), _plan(fsdp=2), tp, _but(tp, sequence_parallel=True), _but(tp, fsdp=2)]
    table = [Row("gpt deep lora", plan) for plan in ways]
    table += [Row("gpt deep lora", _but(plan, checkpoint_activations=True, accumulate=2)) for plan in (ways[1], tp)]
    stages = [*(_but(pp, schedule=schedule) for schedule in SCHEDULES), _but(pp, dp=2), _but(pp, fsdp=2)]
    table += [Row("gpt deep lora", plan) for plan in (*stages, _but(pp, tp=2, accumulate=2))]
    table += [Row("gpt deep lora", _plan(dp=2, tp=2, pp=2, accumulate=2))]
    table += [Row(name, plan) for name in ("callable lora", "instance lora") for plan in ways[:2]]
    return [*table, Row("instance lora", pp)]


def _pipelines() -> list[Row]:
    two = [_plan(pp=2, schedule=schedule) for schedule in SCHEDULES]
    table = [Row("gpt deep", plan) for plan in two]
    table += [Row("gpt deep", _plan(pp=n, schedule=schedule)) for n in (3, 4) for schedule in ("1f1b", "gpipe")]
    table += [Row("gpt deep tied", plan) for plan in two]
    table += [Row(name, _plan(pp=2)) for name in ("gpt ragged", "gpt tied", "cnn", "mlp", "instance")]
    table += [Row("gpt deep", _but(plan, checkpoint_activations=True)) for plan in two]
    hybrids = [_plan(dp=2, pp=2), _plan(fsdp=2, pp=2), _plan(fsdp=2, pp=2, schedule="interleaved")]
    hybrids += [_plan(dp=2, pp=2, schedule="zbv")]
    table += [Row(name, plan) for plan in hybrids for name in ("gpt deep", "gpt deep tied")]
    table += [Row("gpt deep", plan, (("freeze", ("embed*", "blocks.0.*")),)) for plan in (two[0], hybrids[1])]
    table += [Row("gpt deep", two[0], (("ema", 0.9),)), Row("gpt deep", _but(two[0], accumulate=4))]
    # Not "gpt deep": in fp32 it parts by 1e-5 under dp as well, once Adam has divided a gradient of nothing by itself.
    table += [Row("gpt ragged", _but(two[0], precision="fp32"), (), FP32, only_losses=True)]
    table += [
        Row("gpt ragged", _but(plan, precision="bf16"), (), BF16, only_losses=True) for plan in (two[0], hybrids[1])
    ]
    return table


def _tensors() -> list[Row]:
    tp, sequence = _plan(tp=2), _plan(tp=2, sequence_parallel=True)
    both = (tp, sequence)
    # "gpt" has one head of keys and values, which every worker of an axis takes; its vocabulary is odd.
    table = [Row(name, plan) for plan in both for name in ("gpt", "gpt ragged", "gpt tied", "gpt heads")]
    table += [Row("gpt heads", _but(plan, tp=4)) for plan in both]
    table += [Row("gpt ragged", _but(plan, accumulate=2)) for plan in both]
    table += [Row("gpt", _but(plan, checkpoint_activations=True)) for plan in both]
    table += [Row("gpt", tp, (("freeze", ("embed*", "blocks.0.*")),)), Row("gpt", sequence, (("ema", 0.9),))]
    hybrids = [_but(plan, **axis) for plan in both for axis in ({"dp": 2}, {"fsdp": 2}, {"pp": 2, "accumulate": 2})]
    table += [Row(name, plan) for plan in hybrids for name in ("gpt ragged", "gpt tied")]
    table += [Row("gpt deep", _but(tp, pp=2, schedule=schedule, accumulate=4)) for schedule in SCHEDULES]
    table += [Row("gpt", _but(plan, precision="fp32"), (), FP32, only_losses=True) for plan in (*both, *hybrids[:3])]
    table += [
        Row("gpt", _but(plan, precision="bf16"), (), BF16, only_losses=True) for plan in (*both, hybrids[1], hybrids[2])
    ]
    eight = [_plan(tp=2, pp=2, accumulate=2, **more) for more in ({"dp": 2}, {"fsdp": 2})]
    eight += [_but(eight[1], sequence_parallel=True)]
    return table + [Row("gpt deep tied", plan) for plan in eight]


def _plan(**fields: Any) -> Island:
    return Island(**{"precision": "fp64"} | fields)


def _but(plan: Island, **changes: Any) -> Island:
    return dataclasses.replace(plan, **changes)


def _batch(size: int) -> tuple[tuple[str, Any], ...]:
    return (("global_batch", size),)


def _optimizer(recipe: Any) -> tuple[tuple[str, Any], ...]:
    return (("optimizer", recipe),)


class Table:
    """Runs rows on a pool; the reference of each case once."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.references: dict[Any, Trace] = {}

    def reference(self, row: Row) -> Trace:
        key = row.case, row.changes, row.reference
        if key not in self.references:
            (self.references[key],) = self.pool.run(trace, (row.of(), row.reference), 1, name=f"{row.name}: reference")
        return self.references[key]

    def differences(self, row: Row, entry: Callable[..., Any] = trace, *, timeout_s: float = 60.0) -> list[str]:
        """Where any worker's trace differs from one process; empty where the row holds. `entry` is what workers run.

        Raises: WorkerError for a row that hangs or raises.
        """
        expected, plan = self.reference(row), row.plan
        found = self.pool.run(entry, (row.of(), plan), plan.num_workers, name=row.name, timeout_s=timeout_s)
        return [
            f"worker {number}: {text}"
            for number, one in enumerate(found)
            for text in differences(one, expected, row.tolerance, only_losses=row.only_losses)
        ]

"""The job: what is learned, as plain single-device PyTorch. A frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from konvoi.errors import JobError
from konvoi.job import data as data_sets
from konvoi.job import optimizers, schedules
from konvoi.observe.events import CheckpointSaved, Evaluated, StepDone
from konvoi.values import DataSpec, ModelRecipe, Objective, OptimizerRecipe, Schedule, Source, Splits


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """A user's own functions, called on worker 0 in the loop. They may read; what they raise ends the run."""

    on_step: Callable[[StepDone], None] | None = None
    on_eval: Callable[[Evaluated], None] | None = None
    on_checkpoint: Callable[[CheckpointSaved], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, data, an objective, and how long and how to learn.

    - `model`: a ready-made one (`kv.models.gpt(depth=6)`), any callable that makes an `nn.Module`, or a module.
    - `data`: `kv.data.text(...)` and its like, any map-style data set, a pair (train, held-out), or an iterable.
    - `objective`: `(model, batch) -> (loss_sum, weight)`.
    - `global_batch`: samples per optimizer step over all workers: it belongs to the job, not to the plan.
    - one of `steps`, `tokens`, `epochs` (default: one epoch).
    - `clip_grad_norm`: the largest 2-norm of the whole model's gradient; None leaves it.
    - `ema`: decay per step of an exponential moving average of the weights, evaluated and exported in their place.
    - `freeze`: patterns of parameter names that are not trained ("*.embed*").
    - `validate_every`: steps between evaluations on the held-out part, beside the first and the last; 0: never.
    - `patience`: evaluations without a better loss after which the run stops early.
    - `on_nonfinite`: "raise", or "skip" to leave such a step out on every worker.
    - `num_loaders`: loader processes a worker; they never change the order of samples.
    - `sample_prompt`: text that the trained model is asked to continue at each evaluation (text data only).

    Raises: JobError.
    """

    model: Any
    data: Any
    objective: Objective
    optimizer: OptimizerRecipe = field(default_factory=lambda: optimizers.adamw())
    schedule: Schedule = field(default_factory=lambda: schedules.cosine())
    global_batch: int = 32
    steps: int | None = None
    tokens: float | None = None
    epochs: float | None = None
    seed: int = 0
    clip_grad_norm: float | None = 1.0
    ema: float | None = None
    freeze: tuple[str, ...] = ()
    validate_every: int | None = None
    validate_batches: int | None = None
    patience: int | None = None
    on_nonfinite: Literal["raise", "skip"] = "raise"
    num_loaders: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    sample_prompt: str | None = None
    hooks: Hooks = field(default_factory=Hooks)

    def __post_init__(self) -> None:
        lengths = {
            name: getattr(self, name) for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None
        }
        if len(lengths) > 1:
            raise JobError("a job has one length", found=lengths, expected="one of steps, tokens, epochs")
        for name, value in [*lengths.items(), ("global_batch", self.global_batch)]:
            if not value > 0:
                raise JobError(f"{name} is a number above zero", found=repr(value))
        if not callable(self.model):
            raise JobError("the model is a module or a callable that makes one", found=type(self.model).__name__)
        if not callable(self.objective):
            raise JobError(
                "the objective is a callable (model, batch) -> (loss_sum, weight)", found=type(self.objective).__name__
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise JobError("ema is a decay between 0 and 1", found=self.ema, hint="ema=0.999")
        if self.on_nonfinite not in ("raise", "skip"):
            raise JobError("on_nonfinite is 'raise' or 'skip'", found=repr(self.on_nonfinite))


@dataclass(frozen=True)
class Prepared:
    """A job with its data read and its open values derived: what travels to the workers."""

    job: Job  # its model fitted to the data
    splits: Splits
    num_steps: int
    unit: Literal["tokens", "samples"]
    derived: tuple[str, ...]

    @property
    def num_samples(self) -> int | None:
        """Of the training part; None for a stream."""
        return len(self.splits.train) if isinstance(self.splits.train, Source) else None

    def describe(self) -> dict[str, Any]:
        """For the run's record and the terminal's header."""
        job = self.job
        named = {name: _brief(getattr(job, name)) for name in ("model", "objective", "optimizer", "schedule")}
        plain = {
            f.name: getattr(job, f.name)
            for f in dataclasses.fields(job)
            if f.name not in (*named, "data", "hooks", "collate", "steps", "tokens", "epochs")
            and getattr(job, f.name) not in (None, ())
        }
        return {**named, "data": dict(self.splits.description), "steps": self.num_steps, "unit": self.unit, **plain}


def prepare(job: Job) -> Prepared:
    """Read the data and derive what is open. Raises: DataError, JobError."""
    splits = data_sets.of(job.data).prepare()
    spec = splits.spec
    model = job.model.fit(spec) if isinstance(job.model, ModelRecipe) else job.model
    num_samples = len(splits.train) if isinstance(splits.train, Source) else None
    num_steps = _num_steps(job, spec, num_samples)
    derived = (
        *(model.derived() if isinstance(model, ModelRecipe) else ()),
        *_explain_steps(job, num_steps),
        *job.schedule.derived(num_steps),
    )
    return Prepared(
        dataclasses.replace(job, model=model), splits, num_steps, "tokens" if spec.seq_len else "samples", derived
    )


def _num_steps(job: Job, spec: DataSpec, num_samples: int | None) -> int:
    if job.steps is not None:
        return job.steps
    if job.tokens is not None:
        if not spec.seq_len:
            raise JobError(
                "a length in tokens needs data that counts them", found=f"tokens={job.tokens}", hint="steps= or epochs="
            )
        return max(1, int(job.tokens // (job.global_batch * spec.seq_len)))
    if num_samples is None:
        raise JobError("a stream has no epochs", hint="give the job steps= or tokens=")
    return max(1, int((job.epochs or 1) * num_samples // job.global_batch))


def _explain_steps(job: Job, num_steps: int) -> tuple[str, ...]:
    if job.steps is not None:
        return ()
    source = f"tokens={job.tokens:g}" if job.tokens else f"epochs={job.epochs or 1:g}"
    return (f"steps = {num_steps} ({source}, batches of {job.global_batch})",)


def _brief(value: Any) -> str:
    text = repr(value) if dataclasses.is_dataclass(value) else getattr(value, "__qualname__", type(value).__name__)
    return text if len(text) <= 300 else text[:297] + "..."

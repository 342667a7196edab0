"""The job: what is learned, as plain single-device PyTorch. A frozen value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from konvoi.errors import DataError, JobError, did_you_mean
from konvoi.job import data as data_sets
from konvoi.job import optimizers, schedules
from konvoi.job.adapt import LoRA
from konvoi.observe.events import CheckpointSaved, Evaluated, StepDone
from konvoi.values import DataSpec, ModelRecipe, Objective, OptimizerRecipe, Schedule, Source, Splits

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """A user's own functions, called on worker 0 in the loop. They may read; what they raise ends the run."""

    on_step: Callable[[StepDone], None] | None = None
    on_eval: Callable[[Evaluated], None] | None = None
    on_checkpoint: Callable[[CheckpointSaved], None] | None = None


def _explains_options(cls: type[T]) -> type[T]:
    """A misspelt option is an error of ours, with the nearest right name; the signature stays."""
    made = cls.__init__

    @functools.wraps(made)
    def init(self: T, **options: Any) -> None:
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in options:
            if name not in known:
                raise JobError("a job has no such option", found=name, hint=did_you_mean(name, known))
        made(self, **options)

    cls.__init__ = init  # type: ignore[assignment, method-assign]
    return cls


@_explains_options
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
    - `adapt`: `kv.adapt.lora(rank=8)` trains and saves adapters only.
    - `freeze`: patterns of parameter names that are not trained ("*.embed*").
    - `validate_every`: steps between evaluations on the held-out part, beside the first and the last; 0: never.
    - `patience`: evaluations without a better loss after which the run stops early.
    - `on_nonfinite`: "raise", or "skip" to leave such a step out on every worker.
    - `seed`: of the initial weights, the order of samples and everything random. A run may be resumed with another
      seed, global batch or length; it then says what that changes.
    - `num_loaders`: loader processes a worker; they never change the order of samples.
    - `sample_prompt`: text that the trained model is asked to continue at each evaluation (text data only).

    Raises: JobError.
    """

    model: Any
    data: Any
    objective: Objective
    optimizer: OptimizerRecipe = field(default_factory=optimizers.adamw)
    schedule: Schedule = field(default_factory=schedules.cosine)
    global_batch: int = 32
    steps: int | None = None
    tokens: float | None = None
    epochs: float | None = None
    seed: int = 0
    clip_grad_norm: float | None = 1.0
    ema: float | None = None
    adapt: LoRA | None = None
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
        _check_parts(self)
        lengths = {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}
        if len(lengths) > 1:
            raise JobError("a job has one length", found=lengths, expected="one of steps, tokens, epochs")
        for name in ("steps", "global_batch", "validate_batches", "patience"):
            _check_number(name, getattr(self, name), above=0, is_whole=True)
        for name in ("validate_every", "num_loaders", "seed"):
            _check_number(name, getattr(self, name), above=-1, is_whole=True)
        for name in ("tokens", "epochs", "clip_grad_norm"):
            _check_number(name, getattr(self, name), above=0)
        if self.ema is not None and not 0 < self.ema < 1:
            raise JobError("ema is a decay between 0 and 1", found=self.ema, hint="ema=0.999")
        if self.on_nonfinite not in ("raise", "skip"):
            raise JobError("on_nonfinite is 'raise' or 'skip'", found=repr(self.on_nonfinite))
        if self.patience is not None and not self.validate_every:
            raise JobError(
                "patience counts evaluations, and this job has none on its way",
                found=f"patience={self.patience}, validate_every={self.validate_every}",
                hint="validate_every=100 evaluates every hundred steps",
            )


LENGTHS = ("steps", "tokens", "epochs")


def _check_parts(job: Job) -> None:
    if not callable(job.model):
        raise JobError("the model is a module or a callable that makes one", found=type(job.model).__name__)
    if not callable(job.objective):
        raise JobError(
            "the objective is a callable (model, batch) -> (loss_sum, weight)", found=type(job.objective).__name__
        )
    if not isinstance(job.optimizer, OptimizerRecipe) or isinstance(job.optimizer, type):
        raise JobError(
            "the optimizer is a recipe that builds one for named parameters",
            found=repr(job.optimizer),
            hint="kv.optimizers.adamw(lr=3e-4), sgd(...) or muon(...)",
        )
    if not isinstance(job.schedule, Schedule) or isinstance(job.schedule, type):
        raise JobError("the schedule is a recipe", found=repr(job.schedule), hint="kv.schedules.cosine(warmup=100)")
    if job.adapt is not None and not isinstance(job.adapt, LoRA):
        raise JobError("adapt is a kind of adapter", found=repr(job.adapt), hint="adapt=kv.adapt.lora(rank=8)")
    if isinstance(job.freeze, str) or not all(isinstance(pattern, str) for pattern in job.freeze):
        raise JobError(
            "freeze is several patterns of parameter names", found=repr(job.freeze), hint=f"freeze=({job.freeze!r},)"
        )


def _check_number(name: str, value: Any, *, above: int, is_whole: bool = False) -> None:
    kinds = (int,) if is_whole else (int, float)
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or not value > above):
        kind = "a whole number" if is_whole else "a number"
        raise JobError(
            f"{name} is {kind} above zero" if above == 0 else f"{name} is {kind} from zero", found=repr(value)
        )


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

    def example(self) -> Any:
        """A batch of one sample; None where there is none to be had without taking it from a stream."""
        source = self.splits.train if isinstance(self.splits.train, Source) else self.splits.valid
        if source is None:
            return None
        from konvoi.job.data.collate import collate

        return (self.job.collate or collate)([source[0]])

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


def prepare(job: Job, *, held_out: bool = False) -> Prepared:
    """Read the data and derive what is open. `held_out`: there are samples to evaluate on beside the data's own.

    Raises: DataError, JobError."""
    splits = data_sets.of(job.data).prepare()
    spec = splits.spec
    model = job.adapt.on(job.model) if job.adapt else job.model
    model = model.fit(spec) if isinstance(model, ModelRecipe) else model
    num_samples = len(splits.train) if isinstance(splits.train, Source) else None
    _check_against_data(job, splits, num_samples, held_out)
    num_steps = _num_steps(job, spec, num_samples)
    derived = (
        *(model.derived() if isinstance(model, ModelRecipe) else ()),
        *_explain_steps(job, num_steps),
        *job.schedule.derived(num_steps),
    )
    return Prepared(
        dataclasses.replace(job, model=model), splits, num_steps, "tokens" if spec.seq_len else "samples", derived
    )


def _check_against_data(job: Job, splits: Splits, num_samples: int | None, held_out: bool) -> None:
    """Raises: JobError, DataError."""
    if num_samples is not None and num_samples < job.global_batch:
        raise DataError(
            "the data has fewer samples than one global batch, which would hold some of them twice",
            found=f"{num_samples} samples, global_batch={job.global_batch}",
            hint=f"global_batch={num_samples} or less",
        )
    if splits.valid is None and job.validate_every and not held_out:
        raise JobError(
            "there is no held-out data to evaluate on",
            found=f"validate_every={job.validate_every}",
            hint="holdout=0.1 on the data, or a pair (train, held-out); or kv.fleet.simulated(..., holdout=0.1)",
        )
    if job.sample_prompt is not None and splits.spec.tokenizer is None:
        raise JobError(
            "only a model of text can continue a prompt",
            found=f"sample_prompt={job.sample_prompt!r}",
            expected="a job on kv.data.text(...)",
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

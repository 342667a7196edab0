"""What surrounds the steps of a run on one worker: batches, evaluation, checkpoints, and going on where it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from konvoi import devices
from konvoi.errors import NonFiniteError
from konvoi.held_out import held_out, sample
from konvoi.island import Gradient, LiveIsland
from konvoi.job.data import stream_loader
from konvoi.job.data.loader import Batches
from konvoi.learner import Buffers, Follower, Learner, check_same_model
from konvoi.observe.events import CheckpointSaved, Evaluated, Ready, Sampled, StepDone, Warned
from konvoi.plan.precision import LossScale
from konvoi.plan.split.materialize import key
from konvoi.profiling import traced
from konvoi.resuming import changes, load, order, packed, unpacked
from konvoi.state import checkpoint
from konvoi.state.record import whole_checkpoints
from konvoi.task import Outcome, Task
from konvoi.values import MicroBatch, Source

SMALLEST_SCALE = 2.0**-10  # of the mean loss under fp16: whatever overflows here would without a scale, too


class Session:
    """Use with `with`. Every worker calls the same methods at the same steps; worker 0 speaks."""

    def __init__(self, island: LiveIsland, task: Task) -> None:
        begin = time.perf_counter()
        self.island, self.task, self.job = island, task, task.prepared.job
        self.is_leader = island.place.worker == 0
        self.emit = island.place.send if self.is_leader else lambda event: None
        self.parts = island.split(
            self.job.model,
            self.job.objective,
            seed=self.job.seed,
            freeze=self.job.freeze,
            example=task.prepared.example() if task.plan.pp > 1 else None,
        )
        for module in self.parts.modules:
            module.train()  # some arrive in evaluation mode, as those of transformers do
        follows = task.membership is not None and task.membership.plan.updates == "gradients"
        self.learner = (Follower if follows else Learner)(self.job, self.parts, task.prepared.num_steps)
        self.shapes = island.of_all_stages(self.learner.shapes())
        self.checkpoints = checkpoint.Checkpoints(
            task.folder / "checkpoints",
            keep=task.keep,
            worker=island.place.worker,
            num_workers=island.place.num_workers,
            share=(island.part, task.plan.num_parts),
            on_saved=self._on_saved,
        )
        self.saved_step, self.evaluated_step, self.best_step = 0, -1, -1
        self.best_loss, self.num_worse = math.inf, 0
        self.stream_state: Any = None
        self.stream: stream_loader.StreamBatches | None = None
        self.start = self._restore() if task.resume or island.place.attempt else 0
        self.step = self.start
        self.was_over = self._is_over()
        self.buffers = Buffers(
            self.parts,
            island.data_group,
            is_shared=task.plan.num_parts > 1,
            can_undo=self.job.on_nonfinite == "skip" or island.scale_is_dynamic,
        )
        self.team: Any = None
        if task.membership is not None:
            from konvoi.team import Team  # loads gRPC, which an island alone does without

            self.team = Team(task.membership, island, self.parts, self.emit, learner=self.learner, start=self.start)
        self.profiler: torch.profiler.profile | None = None
        sizes = island.of_all_stages({name: p.numel() for name, p in self.learner.parameters.items()})
        self.emit(Ready(num_parameters=sum(sizes.values()), seconds=time.perf_counter() - begin))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *failure: Any) -> None:
        if self.team is not None:
            self.team.__exit__(*failure)
        self.checkpoints.close()

    @property
    def has_converged(self) -> bool:
        return self.job.patience is not None and self.num_worse >= self.job.patience

    def _is_over(self) -> str:
        """Why nothing is left to do after what was restored; "" where something is."""
        if self.start and self.start >= self.task.prepared.num_steps:
            return "finished"
        return "early stopping" if self.start and self.has_converged else ""

    # -- steps --------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, list[MicroBatch], float]]:
        """The remaining steps: their number (1 is the first), this worker's micro-batches, the seconds waited."""
        place = self.island.place
        if self.was_over:
            return
        with self._batches() as batches, self._trace() as self.profiler:
            samples, step = iter(batches), self.start
            while step < self.task.prepared.num_steps:
                place.reach_step(step + 1)
                begin = time.perf_counter()
                read = next(samples, None)
                if read is None:  # a stop was asked for while this island waited for others
                    return
                step += 1
                if self.team is not None:
                    step = min(self.team.step(step), self.task.prepared.num_steps)
                micro = [self.island.to_device(item) for item in read]
                waited = time.perf_counter() - begin
                # Dropout draws from here: nothing random is carried from step to step, so resuming needs no state.
                devices.seed(self.island.device, key(self.job.seed, f"step {step} worker {place.worker}"))
                yield step, micro, waited

    def _trace(self) -> contextlib.AbstractContextManager[torch.profiler.profile | None]:
        if not (self.task.profile and self.is_leader):
            return contextlib.nullcontext()
        return traced(self.task.folder / "trace.json", lambda text: self.emit(Warned(message=text)))

    def _batches(self) -> Any:
        plan, job = self.task.plan, self.job
        if self.team is not None:
            return contextlib.closing(self.team.batches(self.task.prepared))
        common: dict[str, Any] = {
            "seed": job.seed,
            "global_batch": job.global_batch,
            "worker": self.island.part,
            "num_workers": plan.num_parts,
            "accumulate": plan.num_micro_batches(job.global_batch),
            "start_step": self.start,
            "collate": job.collate,
            "pin_memory": self.island.device.type != devices.CPU,
        }
        source = self.task.prepared.splits.train
        if isinstance(source, Source):
            return Batches(source, num_loaders=job.num_loaders, **common)
        self.stream = stream_loader.StreamBatches(source, state=self.stream_state, **common)
        for note in self.stream.notes:
            self.emit(Warned(message=note))
        return self.stream

    def after_step(self, done: StepDone) -> None:
        """Tell, evaluate and save where it is time."""
        job, step, before = self.job, done.step, self.step
        self.step = step
        self.buffers.after_step(not done.skipped)
        if self.team is not None:
            self.team.after_step(0.0 if done.skipped else done.weight)
        self.emit(done)
        if self.is_leader and job.hooks.on_step:
            job.hooks.on_step(done)
        if self.profiler is not None:
            self.profiler.step()
        if step == self.start + 1:
            self.checkpoints.load_early()
        self.checkpoints.check()
        if step >= self.task.prepared.num_steps:
            return  # the last step's figures and checkpoint are `end`'s: a convoy agrees once more
        if job.validate_every and step // job.validate_every > before // job.validate_every:
            self.evaluate(step)
        every, is_kept = self.task.checkpoint_every, job.patience is not None and self.best_step == step
        if is_kept or (every and step // every > before // every):
            self.save(step)

    def on_nonfinite(self, step: int, gradient: Gradient) -> None:
        """Leave the step out (everywhere, as every worker sees the same numbers), or end the run.

        Raises: NonFiniteError. Under fp16 a gradient that is too large only asks for a smaller loss scale.
        """
        is_overflow = self.island.scale_is_dynamic and math.isfinite(gradient.loss)
        if self.job.on_nonfinite == "skip" or (is_overflow and gradient.scale * gradient.weight > SMALLEST_SCALE):
            return
        self.checkpoints.wait()  # before the workers meet: after it, the last checkpoint is there for all to see
        finite = self.island.gather_objects(gradient.own_is_finite)
        workers = [number for number, is_finite in enumerate(finite) if not is_finite]
        last = whole_checkpoints(self.checkpoints.folder)
        raise NonFiniteError(
            "the loss is not finite" if workers else "the gradient is not finite",
            found=f"loss {gradient.loss}, gradient norm {gradient.norm} at step {step}"
            + (f", first on worker {', '.join(map(str, workers))}" if workers else ""),
            hint=(f"the last good checkpoint is {last[-1][1]}" if last else "there is no checkpoint yet")
            + "; a smaller lr or clip_grad_norm, or on_nonfinite='skip' leaves such steps out",
        )

    # -- evaluation ---------------------------------------------------------------------------------------------

    def evaluate_first(self) -> None:
        is_late = self.team is not None and self.team.comes_late  # what it has to show is the others'
        if self.start == 0 and self.job.validate_every != 0 and not is_late:
            self.evaluate(0)

    def evaluate(self, step: int) -> None:
        """Held-out figures, averaged over the global split."""
        self.evaluated_step = step
        if self.task.prepared.splits.valid is None:
            return
        begin = time.perf_counter()
        with self.learner.averaged():
            values = held_out(self.island, self.parts, self.task)
            text = sample(self.island, self.parts, self.task)
        is_best = values["loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best_step, self.num_worse = values["loss"], step, 0
        else:
            self.num_worse += 1
        event = Evaluated(step=step, split="valid", values=values, seconds=time.perf_counter() - begin, best=is_best)
        self.emit(event)
        if text is not None:
            self.emit(Sampled(step=step, prompt=self.job.sample_prompt or "", text=text))
        if self.is_leader and self.job.hooks.on_eval:
            self.job.hooks.on_eval(event)

    # -- state --------------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        is_best = self.best_step == step
        facts = {
            "step": step,
            "plan": self.task.plan.describe(),
            "shapes": self.shapes,
            "order": order(self.task.prepared),
            "stream": packed(self.stream.state_dict()) if self.stream is not None and self.is_leader else None,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": step if is_best else self.checkpoints.best_step,
            "num_worse": self.num_worse,
            "evaluated_step": self.evaluated_step,
            "scale": dataclasses.asdict(self.island.scale) if self.island.scale else None,
            "convoy": self.team.reading() if self.team is not None else None,
        }
        self.checkpoints.save(step, self.learner.tensors(), facts, is_best=is_best)
        self.saved_step = step

    def _on_saved(self, saved: checkpoint.Saved) -> None:
        event = CheckpointSaved(
            step=saved.step,
            path=str(saved.path),
            size_bytes=saved.size_bytes,
            blocked_s=saved.blocked_s,
            seconds=saved.seconds,
        )
        self.emit(event)
        if self.job.hooks.on_checkpoint:
            self.job.hooks.on_checkpoint(event)

    def _restore(self) -> int:
        """Read the newest whole checkpoint; returns its step, 0 where there is none."""
        given = self.task.restore_from
        whole = whole_checkpoints(self.checkpoints.folder) if given is None or self.island.place.attempt else []
        newest = self.island.gather_objects(max([*whole, *([given] if given else [])], default=None))[0]
        if newest is None:
            return 0
        step, path = newest
        facts = checkpoint.facts_of(path)
        check_same_model(facts["shapes"], self.shapes)
        missing = load(path, self.learner, self.parts, self.island.place.num_workers)
        for note in (*self.learner.begin_anew(missing), *changes(facts["order"], order(self.task.prepared))):
            self.emit(Warned(message=f"resuming from step {step}: {note}"))
        self.best_loss = facts["best_loss"] if facts["best_loss"] is not None else math.inf
        self.num_worse, self.evaluated_step = facts["num_worse"], facts["evaluated_step"]
        self.best_step = self.checkpoints.best_step = facts["best_step"]
        if self.island.scale_is_dynamic and facts["scale"] and facts["scale"]["is_dynamic"]:
            self.island.scale = LossScale(**facts["scale"])
        self.stream_state = unpacked(facts["stream"])
        self.saved_step = step
        return int(step)

    def reached(self) -> tuple[str, int]:
        """Why there are no more steps, and the last."""
        is_over = self.team is not None and self.step < self.task.prepared.num_steps
        return ("stopped", self.step) if is_over else ("finished", self.task.prepared.num_steps)

    def end(self, reason: str, step: int) -> Outcome:
        """The last evaluation and checkpoint; returns when all is on disk."""
        if self.team is not None:
            self.team.finish()
        if self.was_over:
            reason, step = self.was_over, self.start
            ended = "had ended early" if reason == "early stopping" else "was finished"
            hint = "a larger patience" if reason == "early stopping" else "more steps"
            self.emit(Warned(message=f"this run {ended} at step {step}: nothing to do; resume with {hint} to go on"))
        if reason != "stopped" and self.job.validate_every != 0 and self.evaluated_step != step:
            self.evaluate(step)
        if step > self.saved_step or (self.team is not None and not self.was_over):  # with what was agreed on at last
            self.save(step)
        self.checkpoints.wait()
        # Worker 0 publishes the checkpoint: under torchrun the others would look for it in their next line.
        self.island.gather_objects(None)
        return Outcome(reason, step)

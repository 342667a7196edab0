"""What surrounds the steps: evaluations, early stopping, steps left out, hooks, checkpoints that cannot be."""

import dataclasses
import errno
import json
import resource
import time

import numpy as np
import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import CheckpointMismatch, DiskFull, JobError, NonFiniteError, StateError, WorkerError
from konvoi.observe.events import CheckpointSaved, Evaluated, RunEnded, RunStarted, Sampled, StepDone, Warned
from tests import small

BOTH = pytest.mark.parametrize("plan", [kv.Island(dp=2), kv.Island(fsdp=2)], ids=["dp", "fsdp"])


def notes(run):
    return [event.message for event in small.events(run, Warned)]


class Classification:
    """The objective, with a trap that is told `(rank, step, model)` before each training step's forward pass."""

    def __init__(self, trap=lambda rank, step, model: None, held_out=None):
        self.trap, self.held_out, self.num_steps, self.num_evaluations = trap, held_out, 0, 0
        self.objective = kv.objectives.classification()

    def __call__(self, model, batch):
        loss_sum, weight = self.objective(model, batch)
        if not model.training:
            self.num_evaluations += 1
            return (weight * self.held_out[self.num_evaluations - 1] if self.held_out else loss_sum), weight
        self.num_steps += 1
        factor = self.trap(torch.distributed.get_rank(), self.num_steps, model)
        return loss_sum * (1.0 if factor is None else factor), weight


# -- evaluations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "steps"), [(None, [0, 20]), (0, []), (8, [0, 8, 16, 20]), (10, [0, 10, 20])])
def test_evaluations_come_first_last_and_as_often_as_asked(agent, tmp_path, every, steps):
    run = small.train(agent, tmp_path, small.job(validate_every=every))
    assert [event.step for event in small.events(run, Evaluated)] == steps


def test_early_stopping_keeps_the_best_checkpoint_and_a_larger_patience_goes_on(agent, tmp_path):
    def job(held_out, **fields):
        objective = Classification(held_out=held_out)
        return small.job(objective=objective, validate_every=2, validate_batches=1, patience=2, **fields)

    options = {"checkpoint_every": 3, "keep": 1}
    run = small.train(agent, tmp_path, job([5.0, 3.0, 4.0, 3.5]), **options)
    assert run.reason == "early stopping"
    assert [(event.step, event.best) for event in small.events(run, Evaluated)] == [
        (0, True), (2, True), (4, False), (6, False),
    ]  # fmt: skip
    assert small.saved(run.folder) == [2, 6]
    again = small.train(agent, tmp_path, job([9.0]), **options, resume="run")
    assert (again.reason, len(again.steps), small.saved(run.folder)) == ("early stopping", 6, [2, 6])
    assert "had ended early at step 6" in notes(again)[-1]
    patient = small.job(
        objective=Classification(held_out=[2.0, 9.0]), validate_every=2, validate_batches=1, patience=4, steps=10
    )
    longer = small.train(agent, tmp_path, patient, **options, resume="run")
    assert (longer.reason, len(longer.steps), small.saved(run.folder)) == ("finished", 10, [8, 10])


def test_the_average_is_what_is_evaluated_and_exported(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(ema=0.9, validate_every=None), kv.Island(fsdp=2))
    last = small.events(run, Evaluated)[-1]
    assert run.evaluate()["loss"] == pytest.approx(last.values["loss"], rel=1e-5)
    exported, averaged = dict(run.model().named_parameters()), small.state(run, "ema.")
    assert small.differences({name: p.detach() for name, p in exported.items()}, averaged) == []
    assert small.differences(averaged, small.state(run, "model.")) != []


def test_steps_behind_an_evaluation_of_the_average_are_taken_with_the_weights(agent, tmp_path):
    """fsdp keeps what it has gathered for a forward pass alone."""
    job = small.job(ema=0.9, validate_every=2)
    alone = small.train(agent, tmp_path / "alone", job, kv.Island())
    small.tells_the_same(small.train(agent, tmp_path / "fsdp", job, kv.Island(fsdp=2)), alone)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_evaluating_a_run_gives_its_last_figures_in_its_own_precision(agent, tmp_path, precision):
    run = small.train(agent, tmp_path, small.job(validate_every=None), kv.Island(dp=2, precision=precision))
    last = small.events(run, Evaluated)[-1]
    relative = {"bf16": 1e-3, "fp64": 1e-12}[precision]
    assert run.evaluate() == pytest.approx(dict(last.values), rel=relative)


@BOTH
def test_every_worker_evaluates_with_the_first_ones_running_statistics(agent, tmp_path, plan):
    run = small.train(agent, tmp_path, small.job(model=small.wobbly, validate_every=None), plan)
    last = small.events(run, Evaluated)[-1]
    assert run.evaluate() == pytest.approx(dict(last.values), rel=1e-5)


# -- steps that cannot be taken ----------------------------------------------------------------------------------------


def nan_at(step, worker):
    return lambda rank, now, model: float("nan") if (now, rank) == (step, worker) else 1.0


@BOTH
def test_a_loss_that_is_not_finite_names_the_step_the_worker_and_the_last_checkpoint(agent, tmp_path, plan):
    job = small.job(objective=Classification(nan_at(8, worker=1)))
    with pytest.raises(NonFiniteError, match="the loss is not finite") as caught:
        small.train(agent, tmp_path, job, plan)
    assert caught.value.found.endswith("at step 8, first on worker 1")
    assert str(tmp_path / "run/checkpoints/step-000006") in caught.value.hint
    assert small.saved(tmp_path / "run") == [3, 6]
    assert small.events(tmp_path / "run", RunEnded)[-1].reason == "failed"


@BOTH
def test_a_step_that_is_skipped_is_left_out_on_every_worker(agent, tmp_path, plan):
    objective = Classification(nan_at(3, worker=1))
    job = small.job(objective=objective, on_nonfinite="skip", model=small.wobbly, ema=0.9, steps=4)
    run = small.train(agent, tmp_path, job, plan, checkpoint_every=1, keep=0)
    assert [step.skipped for step in run.steps] == [False, False, True, False]
    second, third, fourth = (
        small.shards.read_whole(run.folder / f"checkpoints/step-{step:06d}", "") for step in (2, 3, 4)
    )
    assert small.differences(second, third) == []
    assert len(small.differences(third, fourth)) > 10
    assert all(tensor.isfinite().all() for tensor in fourth.values())


@pytest.mark.slow
def test_no_clipping_is_no_clipping(agent, tmp_path):
    free = small.train(agent, tmp_path, small.job(clip_grad_norm=None, optimizer=kv.optimizers.sgd()), name="free")
    wide = small.train(agent, tmp_path, small.job(clip_grad_norm=1e9, optimizer=kv.optimizers.sgd()), name="wide")
    tight = small.train(agent, tmp_path, small.job(clip_grad_norm=1e-3, optimizer=kv.optimizers.sgd()), name="tight")
    small.assert_same(free, wide)
    assert free.losses != tight.losses
    assert free.steps[0].grad_norm == tight.steps[0].grad_norm > 1e-3


# -- parts of a job ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frozen_parameters_stay_and_a_pattern_that_names_none_is_an_error(agent, tmp_path):
    job = small.job(freeze=("blocks.0.*", "*.bias"))
    run = small.train(agent, tmp_path, job, name="frozen")
    other = small.train(agent, tmp_path, dataclasses.replace(job, steps=1), name="other")
    changed = small.differences(small.state(run, "model."), small.state(other, "model."))
    names = small.state(run, "model.")
    assert len(names) == 6
    assert set(changed) == {name for name in names if name.endswith("weight")} - {"blocks.0.weight"}
    with pytest.raises(JobError, match="freeze names no parameter"):
        small.train(agent, tmp_path, small.job(freeze=("nothing.*",)), name="wrong")


def test_hooks_get_typed_events_on_the_first_worker(agent, tmp_path):
    log = tmp_path / "log"

    def write(event):
        with log.open("a") as lines:
            lines.write(f"{type(event).__name__} {event.step} {torch.distributed.get_rank()}\n")

    hooks = kv.Hooks(on_step=write, on_eval=write, on_checkpoint=write)
    small.train(agent, tmp_path, small.job(hooks=hooks, steps=3, validate_every=None), checkpoint_every=2)
    lines = log.read_text().splitlines()
    steps = ["Evaluated 0 0", "StepDone 1 0", "StepDone 2 0", "StepDone 3 0", "Evaluated 3 0", "CheckpointSaved 3 0"]
    assert [line for line in lines if line != "CheckpointSaved 2 0"] == steps
    assert "CheckpointSaved 2 0" in lines


@pytest.mark.parametrize("name", ["on_eval", "on_checkpoint"])
def test_what_a_hook_raises_ends_the_run_as_itself(agent, tmp_path, name):
    def fail(event):
        raise LookupError("mine")

    with pytest.raises(WorkerError, match="LookupError: mine"):
        small.train(agent, tmp_path, small.job(hooks=kv.Hooks(**{name: fail}), validate_every=5))


@pytest.mark.parametrize(("steps", "has_trace"), [(12, True), (3, False)])
def test_a_profile_is_a_trace_or_the_reason_why_there_is_none(agent, tmp_path, steps, has_trace):
    run = small.train(agent, tmp_path, small.job(steps=steps), profile=True)
    trace = run.folder / "trace.json"
    assert trace.exists() == has_trace
    assert any("no trace" in note for note in notes(run)) != has_trace
    if has_trace:
        assert json.loads(trace.read_text())["traceEvents"]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_says_so_and_goes_on_with_more_steps_and_another_rate(agent, tmp_path):
    first = small.train(agent, tmp_path, small.job(validate_every=None))
    weights = small.state(first)
    same = small.train(agent, tmp_path, small.job(validate_every=None), resume=True)
    assert (same.reason, same.losses) == ("finished", first.losses)
    assert notes(same) == ["this run was finished at step 20: nothing to do; resume with more steps to go on"]
    assert [event.step for event in small.events(same, Evaluated)] == [0, 20]
    assert small.differences(weights, small.state(same)) == []
    longer = small.job(steps=26, optimizer=kv.optimizers.adamw(lr=0.02), schedule=kv.schedules.constant())
    more = small.train(agent, tmp_path, longer, resume=True)
    assert [step.step for step in more.steps] == [*range(1, 27)]
    assert more.steps[-1].lr == 0.02
    assert notes(more)[-1] == ("resuming from step 20: steps was 20 and is 26: the schedule follows the new length")


@pytest.mark.slow
def test_a_change_of_the_order_of_samples_is_said(agent, tmp_path):
    small.train(agent, tmp_path, small.job(steps=4))
    changed = small.job(steps=6, seed=1, global_batch=10, data=(small.Samples(50), small.Samples(20)))
    run = small.train(agent, tmp_path, changed, resume=True)
    found = [note.split(":")[1].strip() for note in notes(run)]
    assert found == [
        "seed was 0 and is 1", "global_batch was 8 and is 10", "samples was 60 and is 50", "steps was 4 and is 6"
    ]  # fmt: skip


def test_another_optimizer_begins_anew_and_says_so(agent, tmp_path):
    small.train(agent, tmp_path, small.job(steps=4))
    run = small.train(agent, tmp_path, small.job(steps=6, optimizer=kv.optimizers.sgd(momentum=0.9)), resume=True)
    assert any("no state of this optimizer for 6 of 6 parameters" in note for note in notes(run))
    assert len(run.steps) == 6


def test_a_checkpoint_of_another_model_is_refused_before_any_worker_starts(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(steps=2))
    other = kv.models.mlp((12, 13), input_shape=(6,), num_outputs=2)
    with pytest.raises(CheckpointMismatch, match="another model") as caught:
        small.train(agent, tmp_path, small.job(model=other), resume="run")
    assert "[12, 12] in the checkpoint, [13, 12] in the model" in caught.value.found
    assert len(small.events(run, RunStarted)) == 1


def test_a_damaged_checkpoint_is_named_before_any_worker_starts(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(steps=6))
    shard = min((run.folder / "checkpoints/step-000006").glob("*.distcp"))
    shard.write_bytes(b"")
    with pytest.raises(StateError, match="damaged") as caught:
        small.train(agent, tmp_path, small.job(steps=8), resume="run")
    assert str(shard) in caught.value.found
    assert "to go on from step 3" in caught.value.hint
    assert len(small.events(run, RunStarted)) == 1


def only_outside_of_meta():
    """As one that loads weights from a file: it looks at values."""
    layer = nn.Linear(6, 2)
    assert layer.weight.abs().sum().item() > 0
    return layer


@pytest.mark.slow
def test_a_model_that_cannot_be_outlined_is_resumed_all_the_same(agent, tmp_path):
    small.train(agent, tmp_path, small.job(model=only_outside_of_meta, steps=2))
    run = small.train(agent, tmp_path, small.job(model=only_outside_of_meta, steps=4), resume="run")
    assert len(run.steps) == 4


def in_evaluation_mode():
    """As transformers' `from_pretrained` gives them."""
    return small.wobbly().eval()


@pytest.mark.slow
def test_a_model_that_comes_in_evaluation_mode_is_trained_all_the_same(agent, tmp_path):
    one = small.train(agent, tmp_path, small.job(model=in_evaluation_mode), name="one")
    two = small.train(agent, tmp_path, small.job(model=small.wobbly), name="two")
    small.assert_same(one, two)


class Numbers:
    """A stream that knows where it is, though not as something that JSON could hold."""

    def __init__(self):
        self.place = np.int64(0)

    def __iter__(self):
        while self.place < 100:
            self.place += 1
            yield small.Samples()[self.place]
        self.place = np.int64(0)

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Forgetful:
    def __iter__(self):
        yield from (small.Samples()[index] for index in range(1, 101))


@pytest.mark.parametrize("stream", [Numbers, Forgetful])
def test_a_stream_goes_on_where_it_was(agent, tmp_path, stream):
    whole = small.train(agent, tmp_path, small.job(data=stream()), name="whole")

    def fail(done):
        if done.step == 14:
            raise InterruptedError

    with pytest.raises(WorkerError, match="InterruptedError"):
        small.train(agent, tmp_path, small.job(data=stream(), hooks=kv.Hooks(on_step=fail)))
    facts = json.loads((tmp_path / "run/checkpoints/step-000012/facts.json").read_text())
    assert (facts["stream"] is None) == (stream is Forgetful)
    run = small.train(agent, tmp_path, small.job(data=stream()), resume="run")
    small.assert_same(run, whole)
    assert any("resuming reads again" in note for note in notes(run)) == (stream is Forgetful)


@pytest.mark.slow
def test_the_loss_scale_of_fp16_is_part_of_a_checkpoint(agent, tmp_path):
    def job(**fields):
        return small.job(objective=Classification(overflow_at(4)), **fields)

    plan = kv.Island(dp=2, precision="fp16")
    first = small.train(agent, tmp_path, job(steps=6), plan)
    assert [step.skipped for step in first.steps] == [False, False, False, True, False, False]
    assert first.steps[5].scale == first.steps[0].scale / 2
    second = small.train(agent, tmp_path, small.job(steps=8), plan, resume="run")
    assert second.steps[7].scale == first.steps[0].scale / 2


def overflow_at(step):
    """The backward pass, not the loss, is too large once."""
    handles = []

    def trap(rank, now, model):
        if now == step:
            handles.extend(p.register_hook(lambda gradient: gradient * float("inf")) for p in model.parameters())
        while now > step and handles:
            handles.pop().remove()

    return trap


# -- a full disk -------------------------------------------------------------------------------------------------------


def full_for(worker, checkpoint):
    """After this checkpoint no file of the worker's process can grow beyond 100 bytes: as on a disk that is full."""

    def trap(rank, now, model):
        if (now, rank) == (5, worker):
            while not checkpoint.exists():
                time.sleep(0.001)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    return trap


@pytest.mark.parametrize(
    ("plan", "worker"),
    [
        (kv.Island(dp=2), 0),
        (kv.Island(fsdp=2), 1),
        pytest.param(kv.Island(dp=2), 1, marks=pytest.mark.slow),
        pytest.param(kv.Island(fsdp=2), 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_whole(agent, tmp_path, plan, worker):
    job = small.job(objective=Classification(full_for(worker, tmp_path / "run/checkpoints/step-000003")), steps=400)
    with pytest.raises(DiskFull, match="last whole checkpoint is intact") as caught:
        small.train(agent, tmp_path, job, plan)
    assert "resume" in caught.value.hint
    assert small.saved(tmp_path / "run") == [3]
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert len(small.events(tmp_path / "run", CheckpointSaved)) == 1
    run = small.train(agent, tmp_path, small.job(steps=6), plan, resume="run")
    assert (run.reason, [step.step for step in run.steps]) == ("finished", [*range(1, 7)])
    assert {event.step for event in small.events(run, StepDone)} >= {4, 5, 6}


def test_a_disk_without_room_for_the_report_does_not_hide_what_went_wrong(agent, tmp_path, monkeypatch):
    def refuse(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    def trap(rank, now, model):
        raise LookupError("mine")

    monkeypatch.setattr("konvoi.verbs.running.write_report", refuse)
    with pytest.raises(WorkerError, match="LookupError: mine"):
        small.train(agent, tmp_path, small.job(objective=Classification(trap)))


def test_a_sample_is_written_at_each_evaluation(agent, tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, " * 300)
    data = kv.data.text(str(tmp_path / "text.txt"), seq_len=16, cache_dir=tmp_path)
    job = small.job(
        model=kv.models.gpt(depth=1, width=16), data=data, objective=kv.objectives.next_token(), steps=2,
        sample_prompt="", validate_every=None,
    )  # fmt: skip
    run = small.train(agent, tmp_path, job, kv.Island(fsdp=2))
    assert [(event.step, bool(event.text)) for event in small.events(run, Sampled)] == [(0, True), (2, True)]

import pytest

from konvoi.errors import PlanError
from konvoi.plan import Island, parse
from konvoi.plan.island import PRECISIONS


def test_a_plan_of_one_worker_is_the_default():
    assert Island().num_workers == 1
    assert Island().describe() == {"dp": 1}


def test_the_axes_multiply():
    assert Island(dp=3, fsdp=2, accumulate=5).num_workers == 6


def test_a_description_names_what_differs_from_the_default():
    assert Island(fsdp=2, precision="bf16").describe() == {"fsdp": 2, "precision": "bf16"}


@pytest.mark.parametrize("field", ["dp", "fsdp", "pp", "accumulate"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_an_axis_is_a_whole_number_of_at_least_one(field, value):
    with pytest.raises(PlanError, match=f"{field} is a number of at least 1") as caught:
        Island(**{field: value})
    assert caught.value.found == repr(value)


def test_a_misspelt_precision_gets_the_nearest():
    with pytest.raises(PlanError, match="unknown precision") as caught:
        Island(precision="bf61")
    assert "bf16" in caught.value.hint


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_named_precision_is_known(precision):
    assert parse(f"precision={precision}").precision == precision


def test_a_plan_is_read_from_text():
    text = " dp=2, fsdp=3,accumulate=4 ,precision=bf16,compile,checkpoint_activations=false"
    assert parse(text) == Island(dp=2, fsdp=3, accumulate=4, precision="bf16", compile=True)


def test_no_text_is_the_default():
    assert parse("") == Island()


@pytest.mark.parametrize(("text", "near"), [("fdsp=2", "fsdp"), ("acumulate=2", "accumulate"), ("compil", "compile")])
def test_a_misspelt_field_gets_the_nearest(text, near):
    with pytest.raises(PlanError, match="unknown field of a plan") as caught:
        parse(text)
    assert caught.value.hint == f"did you mean {near}?"


@pytest.mark.parametrize("text", ["dp", "dp=", "dp=two", "dp=1.5"])
def test_a_number_that_is_none_is_refused(text):
    with pytest.raises(PlanError, match="dp is a number") as caught:
        parse(text)
    assert caught.value.hint == "dp=2"


def test_a_switch_is_true_or_false():
    with pytest.raises(PlanError, match="compile is true or false") as caught:
        parse("compile=maybe")
    assert caught.value.found == "maybe"


def test_a_field_given_twice_is_refused():
    with pytest.raises(PlanError, match="dp is given twice"):
        parse("dp=2,dp=4")


def test_a_plan_that_fits_passes_the_check():
    Island(dp=2, fsdp=2, accumulate=2).check(num_workers=4, global_batch=8, num_samples=4)
    Island(dp=2).check(num_workers=2, global_batch=2, num_samples=None)


def test_another_size_than_the_fleets_is_refused_with_both_numbers():
    with pytest.raises(PlanError, match="differ in size") as caught:
        Island(dp=2, fsdp=3).check(num_workers=4, global_batch=12, num_samples=None)
    assert caught.value.found == "dp=2 x fsdp=3 = 6 workers on a fleet of 4"
    assert "dp=4" in caught.value.hint


def test_a_batch_with_too_few_samples_is_refused_with_the_numbers():
    with pytest.raises(PlanError, match="too few samples") as caught:
        Island(dp=3, accumulate=2).check(num_workers=3, global_batch=5, num_samples=None)
    assert caught.value.found == "5 samples for 3 workers x 2 forward passes"
    assert caught.value.expected == "at least 6, one a pass"


def test_fewer_samples_than_workers_is_refused():
    with pytest.raises(PlanError, match="fewer samples than workers") as caught:
        Island(dp=4).check(num_workers=4, global_batch=4, num_samples=3)
    assert caught.value.found == "3 samples, 4 workers"


def check(plan, batch=16):
    plan.check(num_workers=plan.num_workers, global_batch=batch, num_samples=None)


def test_a_misspelt_schedule_gets_the_nearest():
    with pytest.raises(PlanError, match="unknown schedule") as caught:
        Island(pp=2, schedule="1fb1")
    assert "1f1b" in caught.value.hint


@pytest.mark.parametrize(
    ("plan", "number"),
    [
        (Island(pp=2), 8),
        (Island(pp=2, dp=2), 8),
        (Island(pp=2, accumulate=4), 4),
        (Island(pp=2, schedule="interleaved"), 16),
        (Island(pp=3), 8),
        (Island(accumulate=3), 3),
    ],
    ids=lambda value: str(value.describe()) if isinstance(value, Island) else None,
)
def test_the_number_of_micro_batches_follows_from_the_batch(plan, number):
    assert plan.num_micro_batches(16) == number
    if plan.pp > 1:
        check(plan)


@pytest.mark.parametrize(
    ("plan", "batch", "message", "told"),
    [
        (Island(pp=4), 3, "too few micro-batches", "3 for 4 stages: it would idle 50% of the time"),
        (Island(pp=2, accumulate=3), 16, "one size", "a global batch of 16 for 1 x 3 micro-batches"),
        (Island(pp=2, dp=3), 16, "one size", "a global batch of 16 for 3 x 5 micro-batches"),
        (Island(pp=2, fsdp=2, schedule="zbv"), 16, "wrong gradients", "schedule=zbv, fsdp=2"),
        (Island(pp=2, accumulate=5, schedule="interleaved"), 15, "whole rounds", "5 micro-batches for pp=2"),
    ],
    ids=lambda value: str(value.describe()) if isinstance(value, Island) else None,
)
def test_a_pipeline_that_cannot_be_is_refused_with_the_numbers(plan, batch, message, told):
    with pytest.raises(PlanError, match=message) as caught:
        check(plan, batch)
    assert caught.value.found == told
    assert caught.value.hint


def test_the_hint_for_uneven_micro_batches_is_a_batch_that_fits():
    with pytest.raises(PlanError) as caught:
        check(Island(pp=2, accumulate=3), 16)
    check(Island(pp=2, accumulate=3), int(caught.value.hint.removeprefix("global_batch=")))


@pytest.mark.parametrize(("schedule", "idle"), [("1f1b", 1 / 9), ("gpipe", 1 / 9), ("interleaved", 1 / 17)])
def test_more_stages_a_worker_idle_less(schedule, idle):
    assert Island(pp=2, schedule=schedule).bubble(8) == pytest.approx(idle)
    assert Island(dp=2).derived(16) == ()

import dataclasses
import inspect
import pickle

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import DataError, JobError
from konvoi.job.job import prepare
from tests import small


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 10, "epochs": 1}, "one length"),
        ({"steps": 0}, "steps is a whole number above zero"),
        ({"steps": 2.5}, "steps is a whole number"),
        ({"steps": None, "tokens": -1}, "tokens is a number above zero"),
        ({"steps": None, "epochs": 0}, "epochs is a number above zero"),
        ({"global_batch": 0}, "global_batch is a whole number above zero"),
        ({"global_batch": "8"}, "global_batch is a whole number"),
        ({"validate_every": -1}, "validate_every is a whole number from zero"),
        ({"num_loaders": -1}, "num_loaders"),
        ({"clip_grad_norm": 0}, "clip_grad_norm is a number above zero"),
        ({"ema": 1}, "ema is a decay"),
        ({"on_nonfinite": "ignore"}, "'raise' or 'skip'"),
        ({"model": "gpt"}, "the model is a module or a callable"),
        ({"objective": 3}, "the objective is a callable"),
        ({"optimizer": kv.optimizers.adamw}, "the optimizer is a recipe"),
        ({"optimizer": "adamw"}, "the optimizer is a recipe"),
        ({"schedule": "cosine"}, "the schedule is a recipe"),
        ({"freeze": "*.embed*"}, r"freeze=\('\*\.embed\*',\)"),
        ({"patience": 3}, "patience counts evaluations"),
        ({"patience": 3, "validate_every": 0}, "patience counts evaluations"),
    ],
    ids=str,
)
def test_what_a_job_cannot_be_is_said_when_it_is_made(fields, words):
    with pytest.raises(JobError, match=words):
        small.job(**fields)


def test_a_misspelt_option_is_an_error_with_the_nearest_right_one():
    with pytest.raises(JobError, match="did you mean validate_every"):
        small.job(validate_evry=3)
    assert "global_batch" in inspect.signature(kv.Job).parameters


def test_a_job_is_a_value_that_can_be_changed_in_copies_and_travels():
    job = small.job(steps=3)
    assert dataclasses.replace(job, steps=4).steps == 4
    assert pickle.loads(pickle.dumps(job)).steps == 3


@pytest.mark.parametrize(
    ("fields", "num_steps"),
    [
        ({"steps": 5}, 5),
        ({"epochs": 2}, 15),
        ({"epochs": 0.5}, 3),
        ({"epochs": 0.01}, 1),
        ({}, 7),
    ],
    ids=str,
)
def test_a_length_is_steps_or_epochs_of_which_one_is_the_default(fields, num_steps):
    assert prepare(small.job(**({"steps": None} | fields))).num_steps == num_steps


def test_a_length_in_tokens_counts_the_positions_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text to learn from, " * 400)
    data = kv.data.text(str(tmp_path / "*.txt"), seq_len=16)
    prepared = prepare(small.job(model=kv.models.gpt(depth=1), data=data, steps=None, tokens=1e3, global_batch=4))
    assert (prepared.num_steps, prepared.unit) == (15, "tokens")
    assert any("steps = 15 (tokens=1000" in line for line in prepared.derived)


def test_a_length_in_tokens_needs_data_that_has_some():
    with pytest.raises(JobError, match="counts them"):
        prepare(small.job(steps=None, tokens=100))


class Forever:
    def __iter__(self):
        while True:
            yield small.Samples()[0]


def test_a_stream_has_no_epochs_and_says_so():
    with pytest.raises(JobError, match="a stream has no epochs"):
        prepare(small.job(data=Forever(), steps=None))
    assert prepare(small.job(data=Forever(), steps=3)).num_samples is None


def test_data_that_is_smaller_than_a_global_batch_is_refused():
    with pytest.raises(DataError, match="fewer samples than one global batch") as caught:
        prepare(small.job(global_batch=61))
    assert caught.value.found == "60 samples, global_batch=61"


def test_evaluations_need_held_out_data():
    with pytest.raises(JobError, match="no held-out data"):
        prepare(small.job(data=small.Samples(), validate_every=5))
    assert prepare(small.job(data=small.Samples(), validate_every=None)).splits.valid is None


def test_a_prompt_needs_a_model_of_text():
    with pytest.raises(JobError, match="model of text"):
        prepare(small.job(sample_prompt="def "))


def test_the_model_is_fitted_to_the_data():
    data = kv.data.tensors(inputs=np.zeros((40, 3)), labels=np.arange(40) % 4)
    assert prepare(small.job(model=kv.models.mlp((5,)), data=data)).job.model.num_outputs == 4


def test_a_description_is_plain_and_names_what_was_chosen():
    described = prepare(small.job(ema=0.9, freeze=("0.*",))).describe()
    assert described["steps"] == 20
    assert described["ema"] == 0.9
    assert described["model"].startswith("MLP(")
    assert "hooks" not in described

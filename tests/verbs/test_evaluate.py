import pytest

import konvoi as kv
from konvoi.errors import DataError, StateError
from konvoi.observe.events import Evaluated
from tests import small


def pairs(samples):
    """A collate function of the user's: other names than the samples have."""
    import torch

    return {
        "x": torch.stack([torch.as_tensor(sample["inputs"]) for sample in samples]),
        "y": torch.tensor([int(sample["labels"]) for sample in samples]),
    }


def objective(model, batch):
    return kv.objectives.classification()(model, {"inputs": batch["x"], "labels": batch["y"]})


@pytest.mark.slow
def test_the_users_own_collate_and_objective_are_used(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(objective=objective, collate=pairs, validate_every=None))
    last = small.events(run, Evaluated)[-1]
    assert kv.evaluate(run.folder) == pytest.approx(dict(last.values), rel=1e-5)


def test_only_as_many_batches_as_the_job_says_are_evaluated(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(validate_batches=1, validate_every=None), name="one")
    whole = small.train(agent, tmp_path, small.job(validate_every=None), name="all")
    assert kv.evaluate(run.folder)["loss"] == pytest.approx(small.events(run, Evaluated)[-1].values["loss"], rel=1e-5)
    assert kv.evaluate(run.folder)["loss"] != pytest.approx(kv.evaluate(whole.folder)["loss"], rel=1e-3)


def test_nothing_held_out_is_a_data_error(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(data=small.Samples(), steps=1))
    with pytest.raises(DataError, match="no held-out part"):
        run.evaluate()


def test_a_folder_that_is_no_run_is_a_state_error(tmp_path):
    with pytest.raises(StateError):
        kv.evaluate(tmp_path)

"""A run of text, and what can be asked of it afterwards: evaluate, generate, export, model."""

import dataclasses

import pytest

import konvoi as kv
from konvoi.errors import StateError
from konvoi.observe.events import Evaluated
from tests import small


def test_a_run_knows_its_steps_losses_and_end(run):
    assert [step.step for step in run.steps] == [1, 2, 3, 4]
    assert run.losses == [step.loss for step in run.steps]
    assert run.reason == "finished"


def test_a_run_is_only_its_folder(run):
    assert kv.Run(run.folder) == run
    assert dataclasses.replace(run).losses == run.losses


def test_the_model_of_a_run_holds_the_newest_checkpoints_weights(run):
    model = run.model()
    assert not model.training
    weights = {name: p.detach() for name, p in model.named_parameters()}
    assert small.differences(weights, small.state(run, "model.")) == []


def test_evaluating_it_gives_the_last_held_out_figures(run):
    last = small.events(run, Evaluated)[-1].values
    assert run.evaluate() == kv.evaluate(run.folder) == pytest.approx(dict(last), rel=1e-5)
    assert "bits_per_byte" in last


def test_its_report_is_written_anew(run):
    run.report().unlink()
    assert run.report().read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("ask", [kv.Run.model, kv.Run.evaluate, lambda run: run.generate("a")])
def test_a_folder_that_is_no_run_is_an_error(tmp_path, ask):
    with pytest.raises(StateError, match="no run of Konvoi"):
        ask(kv.Run(tmp_path))


def test_a_run_that_has_not_begun_has_no_losses(tmp_path):
    run = kv.Run(tmp_path)
    assert (run.losses, run.reason) == ([], "running")


def test_a_run_without_a_checkpoint_says_so(run, tmp_path):
    (tmp_path / "task.pickle").write_bytes((run.folder / "task.pickle").read_bytes())
    with pytest.raises(StateError, match="no checkpoint yet"):
        kv.Run(tmp_path).model()

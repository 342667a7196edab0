"""Every complete program in recipes/ and examples/ runs, as its reader would run it."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest

import konvoi as kv

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted([*(ROOT / "recipes").glob("*.py"), *(ROOT / "examples").glob("*.py")])


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


JOBS = [path for path in PROGRAMS if "def job(" in path.read_text()]


LONG = ("spirals", "split_anything", "stdlib_gpt", "write_python")


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in JOBS]
)
def test_a_job_trains(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = load(path).job()
    run = kv.train(_short(job), sinks=())
    assert run.reason == "finished"
    assert all(math.isfinite(loss) for loss in run.losses)
    assert (run.folder / "report.html").exists()


def _short(job: kv.Job) -> kv.Job:
    return dataclasses.replace(job, steps=3, validate_every=None, validate_batches=1, sample_prompt=None)


@pytest.mark.slow
def test_hospitals_learn_together(tmp_path):
    """The recipe under its own plan and fleet."""
    recipe = load(ROOT / "recipes" / "xray_fedavg.py")
    job = dataclasses.replace(recipe.job(), validate_every=2)
    run = kv.train(job, dataclasses.replace(recipe.plan, rounds=4), recipe.fleet, folder=tmp_path, sinks=())
    assert run.reason == "finished"
    assert run.losses[-1] < 0.5
    assert run.evaluate()["accuracy"] > 0.74  # all who are ill, and nobody else, make up 0.742


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_recipe_is_simulated_and_deployed(tmp_path):
    simulated, losses = load(ROOT / "examples" / "hospitals.py").main(["--folder", str(tmp_path), "--rounds", "4"])
    assert simulated["accuracy"] > 0.7
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert next(tmp_path.glob("hospitals-real-*/st-anne/*.html")).exists()


def test_the_own_loop_learns():
    losses = load(ROOT / "examples" / "own_loop.py").main()
    epoch = len(losses) // 5
    assert sum(losses[-epoch:]) < 0.7 * sum(losses[:epoch])


@pytest.mark.slow
def test_a_model_of_transformers_is_split_resumed_and_exported(tmp_path):
    assert load(ROOT / "examples" / "split_anything.py").main(["--folder", str(tmp_path), "--steps", "4"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spirals", "write_python"])
def test_a_program_runs_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load(ROOT / "examples" / f"{name}.py").main()
    assert len(found) > 0
    assert not isinstance(found, dict) or found["accuracy"] > 0.9

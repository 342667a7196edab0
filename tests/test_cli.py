"""The command as a person types it, wrong words included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from konvoi import cli, options
from konvoi.errors import JobError
from konvoi.options import parse

RECIPE = """
import konvoi as kv
import numpy as np

def job():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return kv.Job(model=kv.models.mlp(widths=(8,)), data=kv.data.tensors(inputs=x, labels=(x[:, 0] > 0).astype(int)),
                  objective=kv.objectives.classification(), global_batch=8, steps=4)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path / "recipe.py"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean train?"),
        (["train", "recipe.py", "--wrokers", "2"], "did you mean --workers?"),
        (["train"], "recipe"),
        ([], "VERB"),
    ],
)
def test_a_wrong_command_names_the_nearest_right_one(words, message, capsys, recipe):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes.py"], "did you mean recipe.py?"),
        (["recipe.py", "step=3"], "did you mean steps?"),
        (["recipe.py", "--plan", "fdsp=2"], "did you mean fsdp?"),
        (["recipe.py", "--plan", "dp=two"], "dp is a number"),
        (["recipe.py", "--resume", "nothing"], "no such run"),
        (["recipe.py", "steps=-3"], "above zero"),
        (["recipe.py", "--plan", "dp=2", "--workers", "1"], "differ in size"),
        (["recipe.py", "--workers", "4096"], "more workers than devices"),
        (["recipe.py", "--plan", "dp=4096"], "more workers than devices"),  # a plan alone asks for its workers
    ],
)
def test_a_wrong_option_of_train_is_refused_before_a_worker_starts(words, message, capsys, recipe):
    assert cli.main(["train", *words]) == 2 or message == "no such run"
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured


def test_a_recipe_without_a_job_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(JobError, match="defines no job"):
        cli.recipe_job(cli.load_recipe(tmp_path / "empty.py"), tmp_path / "empty.py")


def test_a_length_given_on_the_command_line_replaces_the_recipes(recipe):
    job = cli.recipe_job(cli.load_recipe(recipe), recipe)
    assert cli.override(job, ["epochs=2"]).steps is None


@pytest.mark.parametrize(
    "words",
    [
        ["steps=3", "seed=2", "--workers", "2"],
        ["--workers", "2", "steps=3", "seed=2"],
        ["steps=3", "--workers", "2", "seed=2"],
    ],
)
def test_overrides_stand_before_or_after_the_options(words):
    options = parse(["train", "recipe.py", *words])
    assert options.overrides == ["steps=3", "seed=2"]
    assert options.workers == 2


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        (["--resume", "steps=6"], True, ["steps=6"]),
        (["--resume", "mine", "steps=6"], "mine", ["steps=6"]),
        (["steps=6", "--resume"], True, ["steps=6"]),
    ],
)
def test_an_override_after_resume_is_not_taken_for_a_runs_name(words, resume, overrides):
    options = parse(["train", "recipe.py", *words])
    assert (options.resume, options.overrides) == (resume, overrides)


def test_the_help_shows_every_command_in_its_group():
    for verb in cli.VERBS:
        assert f" {verb} " in options.GROUPS


@pytest.mark.slow
def test_a_run_from_the_command_line_can_be_looked_at_afterwards(recipe):
    def konvoi(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "konvoi", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    trained = konvoi("train", "recipe.py", "--workers", "1", "--json", "--name", "mine", "--tensorboard")
    assert trained.returncode == 0, trained.stderr
    kinds = [json.loads(line)["event"] for line in trained.stdout.splitlines()]
    assert kinds[0] == "RunStarted"
    assert kinds.count("StepDone") == 4
    assert kinds[-1] == "RunEnded"
    assert list(Path("runs/mine/tensorboard").iterdir())
    evaluated = konvoi("evaluate", "mine")
    assert set(json.loads(evaluated.stdout)) == {"loss", "accuracy"}
    taken = konvoi("train", "recipe.py", "--name", "mine")
    assert taken.returncode == 1
    assert "--resume goes on with it" in taken.stderr
    assert konvoi("generate", "x").returncode == 2  # not a model of text
    assert konvoi("export", "out").returncode == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["config.json", "model.safetensors"]

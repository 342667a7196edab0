import pytest

import konvoi as kv
from konvoi.errors import JobError
from tests import small


def test_the_same_seed_gives_the_same_text_and_another_another(run):
    text = run.generate("to be", num_tokens=24, seed=1)
    assert text
    assert kv.generate(run.folder, "to be", num_tokens=24, seed=1) == text
    assert run.generate("to be", num_tokens=24, seed=2) != text


def test_more_tokens_continue_fewer(run):
    short, long = (run.generate("to be", num_tokens=number, temperature=0.0) for number in (5, 40))
    assert long.startswith(short)


def test_an_empty_prompt_begins_a_text(run):
    assert isinstance(run.generate("", num_tokens=3), str)


def test_a_model_of_other_things_writes_no_text(agent, tmp_path):
    run = small.train(agent, tmp_path, small.job(steps=1))
    with pytest.raises(JobError, match="does not write text"):
        run.generate("to be")

"""The recipe: what it derives, refuses and takes from the data."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from konvoi.errors import JobError
from konvoi.job.models import gpt
from konvoi.values import DataSpec, ModelRecipe


def test_a_gpt_is_a_model_recipe():
    assert isinstance(gpt(), ModelRecipe)


def test_depth_alone_decides_every_size():
    shape = gpt(depth=12).shape
    assert (shape.width, shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.mlp_width) == (
        768,
        12,
        12,
        64,
        2048,
    )


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_gives_sizes_that_fit_each_other(depth):
    shape = gpt(depth).shape
    assert shape.num_heads * shape.head_dim == shape.width
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim % 2 == 0
    assert shape.mlp_width % 32 == 0
    assert shape.mlp_width >= 8 * shape.width / 3


def test_what_is_overridden_is_not_listed_as_derived_and_the_rest_follows_it():
    recipe = gpt(depth=6, width=256, vocab_size=257, seq_len=64)
    assert recipe.shape.num_heads == 4
    assert [line.split(" ")[1] for line in recipe.derived()] == ["head_dim", "num_heads", "num_kv_heads", "mlp_width"]
    assert all(line.startswith(f"{number}. ") for number, line in enumerate(recipe.derived(), start=1))


def test_each_derived_line_states_the_value_that_the_shape_has():
    recipe = gpt(depth=3, num_heads=4)
    for line in recipe.derived():
        name = line.split(" ")[1]
        if name not in ("vocab_size", "seq_len"):
            assert f"= {getattr(recipe.shape, name)}" in line


def test_replacing_the_depth_derives_everything_anew():
    assert replace(gpt(depth=2, vocab_size=99), depth=4).shape == gpt(depth=4).shape


def test_the_data_fills_in_what_is_open_and_leaves_what_is_set():
    spec = DataSpec(vocab_size=256, seq_len=128)
    assert (gpt().fit(spec).vocab_size, gpt().fit(spec).seq_len) == (256, 128)
    chosen = gpt(vocab_size=512, seq_len=64).fit(spec)
    assert (chosen.vocab_size, chosen.seq_len) == (512, 64)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"width": 100, "num_heads": 3}, "num_heads one of 1, 2, 4"),
        ({"width": 128, "head_dim": 48}, "head_dim one of"),
        ({"width": 128, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads one of 1, 2, 4"),
        ({"width": 63}, "an even head_dim"),
        ({"width": 60, "num_heads": 4}, "an even head_dim"),
        ({"depth": 0}, "at least 1"),
        ({"vocab_size": 0}, "at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_what_would_do(sizes, expected):
    with pytest.raises(JobError) as caught:
        gpt(**sizes)
    assert expected in str(caught.value)
    assert "found" in str(caught.value)


def test_data_without_tokens_is_refused_with_the_models_that_take_it():
    with pytest.raises(JobError, match="tokens") as caught:
        gpt().fit(DataSpec(input_shape=(3, 32, 32), num_classes=10))
    assert "models.cnn" in caught.value.hint


def test_a_vocabulary_smaller_than_the_data_is_refused():
    with pytest.raises(JobError, match="smaller than the data") as caught:
        gpt(vocab_size=100).fit(DataSpec(vocab_size=256))
    assert "256" in str(caught.value)


def test_building_before_the_data_is_known_is_refused():
    with pytest.raises(JobError, match="vocabulary"):
        gpt(depth=1)()


def test_a_recipe_survives_pickling():
    recipe = gpt(depth=2, vocab_size=256)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_reading_recipes_imports_no_torch():
    program = (
        "import sys\n"
        "from konvoi.job import objectives, optimizers, schedules\n"
        "from konvoi.job.models import cnn, gpt, llama_names, mlp\n"
        "gpt(depth=6).derived(), mlp(), cnn(), optimizers.muon(), objectives.next_token(), schedules.cosine()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})

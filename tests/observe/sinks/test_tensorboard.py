import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from konvoi.errors import MissingExtra
from konvoi.observe.events import Restarted
from konvoi.observe.sinks.tensorboard import TensorBoard
from tests.observe.made_up import one_of_each, run_started, step_done


def _read(folder, events):
    sink = TensorBoard(folder)
    for event in events:
        sink(event)
    sink.close()
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_figures_arrive_under_their_names(tmp_path):
    read = _read(tmp_path, one_of_each())
    assert {"train/loss", "train/lr", "train/grad_norm", "speed/tokens_per_s"} <= set(read.Tags()["scalars"])
    (loss,) = read.Scalars("valid/loss")
    assert (loss.step, loss.value) == (1, 5.5)
    assert read.Scalars("speed/tokens_per_s")[0].value == pytest.approx(16384 / 0.2)


def test_a_sample_is_a_text(tmp_path):
    read = _read(tmp_path, one_of_each())
    (sample,) = read.Tensors("sample")
    assert b"def q<" in sample.tensor_proto.string_val[0]


def test_steps_done_again_replace_the_first(tmp_path):
    first = [run_started(), *(step_done(n, loss=1.0) for n in (1, 2, 3, 4))]
    again = [run_started(resumed_from=2, attempt=1), step_done(3, loss=5.0)]
    read = _read(tmp_path, [*first, Restarted(attempt=1, max_restarts=3, from_step=2), *again])
    assert [(scalar.step, scalar.value) for scalar in read.Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match="tensorboard") as caught:
        TensorBoard(tmp_path)
    assert "pip install 'konvoi[tensorboard]'" in str(caught.value)


def test_neither_torch_nor_an_extra_is_loaded_before_it_is_used():
    program = (
        "import sys, konvoi.observe.sinks.tensorboard, konvoi.observe.sinks.terminal, konvoi.observe.report;"
        "print(sorted({'torch', 'tensorboard', 'rich'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout == "[]\n"

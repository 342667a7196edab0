"""The conformance table of sinks: a new one is a row and inherits every check."""

import io
import math

import pytest
from rich.console import Console

from konvoi.observe.events import KINDS
from konvoi.observe.sinks import fan_out
from konvoi.observe.sinks.json_lines import JsonLines
from konvoi.observe.sinks.jsonl import Jsonl
from konvoi.observe.sinks.tensorboard import TensorBoard
from konvoi.observe.sinks.terminal import LiveLine, PlainLines
from tests.observe.made_up import one_of_each, realistic_run, step_done

SINKS = {
    "jsonl": Jsonl,
    "json_lines": lambda folder: JsonLines(io.StringIO()),
    "plain": lambda folder: PlainLines(io.StringIO()),
    "live": lambda folder: LiveLine(Console(file=io.StringIO(), force_terminal=True, width=80)),
    "tensorboard": TensorBoard,
    "fan_out": lambda folder: fan_out([Jsonl(folder), PlainLines(io.StringIO())]),
}


@pytest.fixture(params=SINKS)
def sink(request, tmp_path):
    sink = SINKS[request.param](tmp_path)
    yield sink
    sink.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_sink_takes_every_kind_of_event_also_as_its_first(sink, kind):
    for event in one_of_each():
        if type(event).__name__ == kind:
            sink(event)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_sink_takes_a_loss_that_is_not_finite(sink, loss):
    for step in (1, 2, 3):
        sink(step_done(step, float(step), loss=loss, grad_norm=math.nan, skipped=True))


def test_a_sink_takes_a_whole_run(sink):
    for event in realistic_run(60):
        sink(event)


def test_a_sink_may_be_closed_twice(sink):
    sink(one_of_each()[0])
    sink.close()
    sink.close()


def test_nothing_goes_to_standard_output(tmp_path, capsys):
    for name in SINKS.keys() - {"json_lines"}:
        sink = SINKS[name](tmp_path / name)
        for event in one_of_each():
            sink(event)
        sink.close()
    assert capsys.readouterr().out == ""


def test_json_lines_go_to_standard_output(capsys):
    for event in one_of_each():
        JsonLines()(event)
    assert len(capsys.readouterr().out.splitlines()) == len(one_of_each())


def test_one_sink_that_cannot_close_keeps_no_other_open():
    class Stubborn:
        is_closed = False

        def __call__(self, event):
            pass

        def close(self):
            Stubborn.is_closed = True
            raise OSError("gone")

    class Docile(Stubborn):
        def close(self):
            Docile.is_closed = True

    with pytest.raises(OSError, match="gone"):
        fan_out([Stubborn(), Docile()]).close()
    assert Stubborn.is_closed
    assert Docile.is_closed

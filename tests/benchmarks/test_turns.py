"""Programs by turns: with real processes that count, and a clock that they read themselves."""

import itertools
import sys
import time

import psutil
import pytest

import _programs
import _turns
from _programs import Order
from _turns import Turn

COUNTING = """
import json, os, subprocess, sys, time
sys.path.insert(0, {benchmarks!r})
import _work
if "--child" not in sys.argv:
    sys.exit(subprocess.call([sys.executable, __file__, *sys.argv[1:], "--child"]))
ends = _work.Ends(told=True)
for step in range({steps}):
    time.sleep(0.02)
    ends.step()
with open(_work.TRACE, "w") as file:
    json.dump({{"ends": ends, "losses": [1.0] * len(ends), "blocked": [], "num_parameters": 1}}, file)
"""


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """Makes `ddp` a launcher and a worker that does nothing but count."""

    def command(program, order):
        script = tmp_path / f"{program}.py"
        script.write_text(COUNTING.format(benchmarks=str(_programs.HERE), steps=order.steps))
        return [sys.executable, str(script)]

    monkeypatch.setattr(_programs, "_command", command)


@pytest.mark.slow
def test_only_one_program_runs_at_a_time_and_no_interrupted_step_counts(counting):
    orders = {"a": ("ddp", Order("small_gpt", 200)), "b": ("hf_trainer", Order("small_gpt", 200))}
    done = _turns.take_turns(orders, first=10, per_turn=30, num_turns=3)
    spans = []
    for name, turns in done.items():
        assert len(turns.trace.ends) == 200
        assert len(turns.turns) == 3
        for number, turn in enumerate(turns.turns):
            assert len(turn.seconds) >= 25  # of 30: the harness looks every 50 ms
            assert max(turn.seconds) < 0.5, "a step holds the other's turn"
            assert turn.first >= 10 + 30 * number
            last = turn.first + len(turn.seconds) - 1
            spans.append((turns.trace.ends[turn.first - 2], turns.trace.ends[last - 1], name))
    for (_, end, _), (begin, _, _) in itertools.pairwise(sorted(spans)):
        assert end <= begin + 0.02, "two programs ran at the same time"


def test_steps_that_a_stop_swallowed_count_as_the_median():
    assert Turn(2, (1.0, 2.0, 9.0)).span_s(3) == 12.0
    assert Turn(2, (1.0, 2.0, 9.0)).span_s(5) == 16.0


def test_a_program_that_fails_in_its_turn_says_why_and_the_others_end(monkeypatch, tmp_path):
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "raise SystemExit('no luck today')"]
    monkeypatch.setattr(_programs, "_command", lambda program, order: waits if program == "ddp" else fails)
    monkeypatch.setattr(_turns._Running, "_steps_done", lambda self: 10 if self.program == "ddp" else 0)
    before = set(psutil.Process().children())
    with pytest.raises(RuntimeError, match="no luck today"):
        _turns.take_turns(
            {"a": ("ddp", Order("small_gpt", 9)), "b": ("hf_trainer", Order("small_gpt", 9))},
            first=1,
            per_turn=1,
            num_turns=1,
        )
    time.sleep(0.1)
    assert set(psutil.Process().children()) <= before

import json
import subprocess
import sys
import time

import psutil
import pytest

import _harness
import _programs
from _harness import Options, Result


def told(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_is_one_flat_object_and_a_full_run_leaves_its_record(tmp_path, capsys):
    result = Result({"ratio": 0.123456789, "peer": None, "device": "cpu"}, {"ours_s": [1.0, 2.0]})
    _harness.main("sample", ("ratio",), lambda options: result, argv=["--json"], results=tmp_path)
    assert told(capsys) == {"ratio": 0.12346, "peer": None, "device": "cpu", "quick": False}
    record = json.loads((tmp_path / "sample.json").read_text())
    assert record["ratio"] == 0.12346
    assert record["repeats"] == {"ours_s": [1.0, 2.0]}
    assert {"commit", "date", "machine"} <= record.keys()
    assert record["machine"]["cores"] >= 1


def test_a_quick_run_leaves_no_record_and_passes_its_options(tmp_path, capsys):
    seen = []
    measure = lambda options: seen.append(options) or Result({"ratio": 1.0})  # noqa: E731
    _harness.main("sample", ("ratio",), measure, argv=["--json", "--quick", "--rounds", "2"], results=tmp_path)
    assert told(capsys)["quick"] is True
    assert seen == [Options(quick=True, rounds=2)]
    assert not list(tmp_path.iterdir())


def test_a_missing_key_is_an_error_and_nothing_is_written(tmp_path):
    with pytest.raises(KeyError, match="stall"):
        _harness.main("sample", ("ratio", "stall"), lambda options: Result({"ratio": 1.0}), argv=[], results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        _harness.main("sample", (), lambda options: Result({"ratio": float("inf")}), argv=[], results=tmp_path)


def test_the_spread_is_median_minimum_and_maximum():
    assert _harness.spread("s", [4.0, 1.0, 2.0, 9.0]) == {"s": 3.0, "s_min": 1.0, "s_max": 9.0}


def test_ratios_are_taken_between_runs_of_the_same_round():
    # The ratio of medians would be 2 / 2; a machine that slows down by ten in one round is not seen in pairs.
    assert _harness.paired_ratios([1.0, 2.0, 30.0], [2.0, 4.0]) == [0.5, 0.5]


def test_runs_alternate_in_an_order_that_rotates_and_few_rounds_are_the_first():
    calls = []

    def program(name):
        return lambda: calls.append(name) or len(calls)

    outcomes = _harness.alternate({n: program(n) for n in "abc"}, {"a": 3, "b": 3, "c": 1})
    assert "".join(calls) == "abc" + "ba" + "ab"
    assert outcomes == {"a": [1, 5, 6], "b": [2, 4, 7], "c": [3]}


def test_a_missing_peer_is_said_and_null(capsys):
    assert _harness.version("no-such-package-xyz", why="ray_train") is None
    assert "ray_train" in capsys.readouterr().err
    assert _harness.absent("ratio") == {"ratio": None, "ratio_min": None, "ratio_max": None}


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no luck today"):
        _programs._finish([sys.executable, "-c", "raise SystemExit('no luck today')"], tmp_path, timeout_s=20)


def test_what_a_program_started_in_another_session_ends_with_it(tmp_path):
    launcher = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        _programs._finish([sys.executable, "-c", launcher], tmp_path, timeout_s=1.0)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the launcher's child outlived it"
        time.sleep(0.02)


def test_a_living_process_of_ours_is_noticed():
    # The name that a process was started under counts, not the folder that it lies in.
    with subprocess.Popen(["konvoi", "5"], executable="/bin/sleep") as process:
        with pytest.raises(RuntimeError, match=str(process.pid)):
            _programs.wait_until_alone(timeout_s=0.3)
        process.kill()


def test_konvois_own_record_is_read_as_a_trace(tmp_path):
    from konvoi.observe import events

    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    step = {"grad_norm": 1.0, "lr": 1e-3, "weight": 8.0, "seconds": 0.1, "data_s": 0.0, "wait_s": 0.0}
    happened = [
        events.Ready(num_parameters=7, seconds=1.0, time=11.0),
        events.StepDone(step=1, loss=3.0, time=12.0, **step),
        events.StepDone(step=2, loss=2.0, time=12.5, **step),
        events.CheckpointSaved(step=2, path="x", size_bytes=1, blocked_s=0.25, seconds=1.0, time=13.0),
    ]
    (folder / "events.jsonl").write_text("".join(events.to_json(event) + "\n" for event in happened))
    trace = _programs._read_events(tmp_path, launched=10.0)
    assert trace == _programs.Trace(10.0, (12.0, 12.5), (3.0, 2.0), ((2, 0.25),), 7)
    assert trace.first_step_s() == 2.0
    assert trace.span_s(1, 2) == 0.5

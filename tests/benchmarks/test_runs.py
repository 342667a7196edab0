"""Long studies: what is missing is run, each in a process of its own, and what is done is kept."""

from dataclasses import dataclass

import pytest

from _runs import Runs, in_processes, read_trial

PROGRAM = """
import json, os, sys
_, trial, _, path = sys.argv[1:]
if "seed=13" in trial:
    sys.exit(3)
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
line = {"id": trial, "threads": os.environ["OMP_NUM_THREADS"], "cores": cores}
open(path, "a").write(json.dumps(line) + "\\n")
"""


@dataclass(frozen=True)
class Draw:
    seed: int
    plan: str = "a|b"

    @property
    def id(self):
        return repr(self)

    def run(self):
        raise AssertionError("in a process of its own")


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_what_is_missing_is_run_in_processes(program, tmp_path):
    runs = Runs(tmp_path / "some" / "runs.jsonl")
    runs.add({"id": Draw(1).id, "threads": "as before"})
    in_processes(program, [Draw(1), Draw(2), Draw(3), Draw(2)], runs, 2)
    done = runs.read()
    assert done.pop(Draw(1).id) == {"id": Draw(1).id, "threads": "as before"}
    assert {one: (run["threads"], run["cores"]) for one, run in done.items()} == {
        Draw(2).id: ("1", 1),
        Draw(3).id: ("1", 1),
    }


def test_a_run_that_fails_is_named_and_the_others_are_kept(program, tmp_path):
    runs = Runs(tmp_path / "runs.jsonl")
    with pytest.raises(RuntimeError, match=r"seed=13.* status 3"):
        in_processes(program, [Draw(1), Draw(13), Draw(2)], runs, 1)
    assert {*runs.read()} == {Draw(1).id, Draw(2).id}


def test_a_trial_is_read_from_what_it_is_printed_as():
    assert read_trial(repr(Draw(3, plan="x,y=1")), Draw) == Draw(3, plan="x,y=1")

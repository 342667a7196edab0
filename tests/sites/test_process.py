"""The process that trains: it is ended whole, by whoever wants that, and does not outlive its agent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from konvoi.sites import process
from konvoi.sites.orders import Order, Told
from konvoi.sites.process import Process
from konvoi.sites.protocol import KILLED, LIMITS

TOLD = Told("recipe.py", (), {}, {}, "data", "a")
ORDER = Order(1, "weights", "", "out", "own", {}, False)
HEAD = "import json, os, subprocess, sys, time\nsys.stdin.readline()\nfor line in sys.stdin:\n"
PROGRAMS = {
    "answers": HEAD + "    print(json.dumps({'samples': json.loads(line)['round']}), flush=True)\n",
    "ends": HEAD + "    sys.exit(3)\n",
    "babbles": HEAD + "    print('[1, 2', flush=True)\n",
    "sleeps": HEAD
    + "    child = subprocess.Popen(['sleep', '300'])\n"
    + "    open('child.new', 'w').write(str(child.pid))\n"
    + "    os.rename('child.new', 'child')\n"
    + "    time.sleep(300)\n",
}
AGENT = """
import sys
from konvoi.sites import process
from konvoi.sites.orders import Order, Told
process.PROGRAMS["recipe"] = "serves"
from pathlib import Path
one = process.Process(Told("recipe.py", (), {}, {}, "data", "a"), Path(sys.argv[1]))
one.train(Order(1, "weights", "", "out", "own", {}, False), most_s=300, is_over=lambda: False)
"""
SERVES = """
import os, time
from pathlib import Path
from konvoi.sites.trainer import serve

class Slow:
    def round(self, order):
        Path("pid.new").write_text(str(os.getpid()))
        Path("pid.new").rename("pid")
        time.sleep(300)

serve(lambda told: Slow())
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = []

    def make(name):
        (tmp_path / f"{name}_program.py").write_text(PROGRAMS[name])
        monkeypatch.setitem(process.PROGRAMS, "recipe", f"{name}_program")
        made.append(Process(TOLD, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.end()


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_order_is_answered_by_the_same_process_again_and_again(make):
    one = make("answers")
    assert one.train(ORDER, most_s=60, is_over=lambda: False).samples == 1
    first = one._process.pid
    assert one.train(ORDER, most_s=60, is_over=lambda: False).samples == 1
    assert one._process.pid == first


@pytest.mark.parametrize("name", ["ends", "babbles"])
def test_a_process_without_a_word_that_makes_sense_is_a_code_and_begins_again(make, name):
    one = make(name)
    for _ in range(2):
        assert one.train(ORDER, most_s=60, is_over=lambda: False).code == KILLED


def test_what_takes_too_long_is_a_code(make):
    assert make("sleeps").train(ORDER, most_s=0.3, is_over=lambda: False).code == LIMITS


def test_what_is_over_is_ended_with_its_children(make, tmp_path):
    assert make("sleeps").train(ORDER, most_s=60, is_over=(tmp_path / "child").exists) is None
    until(lambda: not is_there(int((tmp_path / "child").read_text())))


def test_what_cannot_tell_whether_it_is_over_is_ended(make):
    one = make("sleeps")

    def fail():
        raise OSError("a file that cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        one.train(ORDER, most_s=60, is_over=fail)
    assert one._process is None


def test_whoever_ends_it_and_how_often_it_is_ended_once(make):
    one, over, raised = make("answers"), threading.Event(), []

    def end():
        try:
            while not over.wait(0.01):
                one.end()
        except Exception as error:
            raised.append(error)

    ending = [threading.Thread(target=end) for _ in range(4)]
    for thread in ending:
        thread.start()
    for _ in range(10):
        result = one.train(ORDER, most_s=60, is_over=lambda: False)
        assert result.code in (0, KILLED)
    over.set()
    for thread in ending:
        thread.join()
    assert not raised


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its order")
def test_training_ends_with_its_agent(tmp_path):
    (tmp_path / "serves.py").write_text(SERVES)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path)], env=os.environ | {"PYTHONPATH": path})
    try:
        until((tmp_path / "pid").exists)
    finally:
        agent.kill()
        agent.wait()
    until(lambda: not is_there(int((tmp_path / "pid").read_text())), 10.0)

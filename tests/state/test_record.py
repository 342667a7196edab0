import os
import subprocess
import sys

import pytest

from konvoi.errors import StateError
from konvoi.state import record
from konvoi.state.record import Record


def a_run(root, name, age_s=0):
    run = Record(root / name)
    run.write({"model": "m"}, {"dp": 2}, record.pickled(("job", name)))
    when = 1_000_000 - age_s
    os.utime(run.folder / "task.pickle", (when, when))
    return run


def test_a_run_describes_itself_for_people_and_for_later_verbs(tmp_path):
    run = a_run(tmp_path, "first")
    assert (run.folder / "plan.json").read_text() == '{\n "dp": 2\n}'
    assert run.task() == ("job", "first")
    assert not list(run.folder.glob("*.partial"))


def test_functions_of_the_program_itself_come_back(tmp_path):
    run = Record(tmp_path / "run")
    run.write({}, {}, record.pickled(lambda x: x + 1))
    assert run.task()(1) == 2


def test_a_run_is_found_by_name_by_folder_and_as_the_newest(tmp_path):
    old, new = a_run(tmp_path, "old", age_s=50), a_run(tmp_path, "new")
    a_run(tmp_path, "middle", age_s=10)
    assert record.find(tmp_path, "old") == old
    assert record.find(tmp_path, old.folder) == old
    assert record.find(tmp_path, True) == record.find(tmp_path, "") == new


def test_a_misspelt_run_is_an_error_with_the_nearest_name(tmp_path):
    a_run(tmp_path, "baseline")
    with pytest.raises(StateError, match="did you mean baseline"):
        record.find(tmp_path, "basline")


def test_an_empty_folder_has_no_run_to_go_on_with(tmp_path):
    with pytest.raises(StateError, match="no run to go on with"):
        record.find(tmp_path, True)


def test_a_name_is_taken_once(tmp_path):
    a_run(tmp_path, "mine")
    with pytest.raises(StateError, match="--resume"):
        record.create(tmp_path, "mine")


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(record.time, "strftime", lambda _: "now")
    for _ in range(3):
        record.create(tmp_path, None).folder.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["now", "now-2", "now-3"]


def test_a_folder_that_is_no_run_says_what_it_lacks(tmp_path):
    with pytest.raises(StateError, match=r"task\.pickle"):
        Record(tmp_path).task()


def test_another_users_run_is_not_unpickled(tmp_path, monkeypatch):
    run = a_run(tmp_path, "theirs")
    monkeypatch.setattr(record.os, "getuid", lambda: 12345)
    with pytest.raises(StateError, match="another user"):
        run.task()


def test_a_job_that_cannot_be_read_back_says_why(tmp_path):
    run = a_run(tmp_path, "run")
    (run.folder / "task.pickle").write_bytes(b"\x80\x04cno_such_module\nThing\n.")
    with pytest.raises(StateError, match="no_such_module"):
        run.task()


def test_the_newest_step_is_a_number_not_a_name(tmp_path):
    run = Record(tmp_path)
    assert run.newest_step() is None
    for step in (999_999, 1_000_000):
        (run.checkpoints / f"step-{step:06d}").mkdir(parents=True)
    (run.checkpoints / ".step-2000000.partial").mkdir()
    assert run.newest_step() == 1_000_000


def test_two_processes_do_not_train_one_run_and_a_killed_one_lets_go(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from konvoi.state.record import Record\n"
        "with Record(Path(sys.argv[1])).alone():\n    print('held', flush=True); time.sleep(60)"
    )
    run = Record(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", program, str(run.folder)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StateError, match="another process is training this run"), run.alone():
                pass
        finally:
            holder.kill()
    with run.alone():
        pass
    with run.alone():  # and again, in the same process
        pass

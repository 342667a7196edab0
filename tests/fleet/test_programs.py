"""Whole programs, as users start, stop and kill them."""

import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from tests.fleet.programs import PROGRAM, SOURCE, Program

LONG = "train(job(seconds=0.2, steps=1000, num_loaders=2), folder='runs', name='r')\n"


def newest_checkpoint(folder):
    from konvoi.state.record import Record

    return Record(folder / "runs" / "r").newest_step()


# -- ways to start --------------------------------------------------------------------------------------------------


def test_a_script_without_a_guard_with_its_streams_closed_and_its_own_classes(tmp_path):
    (tmp_path / "own_layers.py").write_text("import torch\n\n\ndef make():\n    return torch.nn.Linear(4, 2)\n")
    text = """
        os.environ["SET_LATE"] = "yes"

        def model():
            import own_layers, torch
            class Talking(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = own_layers.make()
                def forward(self, inputs):
                    if not os.path.exists("said"):
                        open("said", "w").close()
                        sys.stdout.write("from the model, " + os.environ["SET_LATE"] + "\\n")
                    return self.inner(inputs)
            return Talking()

        sys.stdout.write("before\\n")
        run = train(job(model=lambda: model(), steps=2), kv.Island(), folder="runs")
        sys.stdout.write(f"after {len(run.losses)}\\n")
        assert "own_layers" not in sys.modules
        assert "torch" not in sys.modules
    """
    command = ["/bin/sh", "-c", f"exec {sys.executable} program.py <&- 2>&-"]
    with Program(tmp_path, textwrap.dedent(text), command=command) as program:
        status, out, err = program.end()
        assert (status, out) == (0, "before\nfrom the model, yes\nafter 2\n"), err
        program.assert_all_gone()


@pytest.mark.slow
def test_the_same_program_from_the_command_line_option_c(tmp_path):
    command = [sys.executable, "-c", PROGRAM + "print(len(train(job(), folder='runs').losses))"]
    with Program(tmp_path, command=command) as program:
        assert program.end()[:2] == (0, "4\n")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_same_program_under_torchrun(tmp_path, num_workers):
    text = """
        run = train(job(), kv.Island(dp=int(os.environ['WORLD_SIZE'])), folder='runs', name='r')
        with open("threads-" + os.environ["RANK"], "w") as file:
            file.write(str(len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1))
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_workers)]
    with Program(tmp_path, textwrap.dedent(text), command=[*launcher, "program.py"]) as program:
        status, _, err = program.end()
        assert status == 0, err
        program.assert_all_gone()
    assert newest_checkpoint(tmp_path) == 4
    for number in range(num_workers):  # those of one process group, that torch's own modules hold, and no more
        assert int((tmp_path / f"threads-{number}").read_text()) <= 5


@pytest.mark.slow
def test_the_same_program_in_a_notebook(tmp_path):
    import nbclient
    import nbformat

    cells = [PROGRAM, "run = train(job(), folder='runs')", "len(run.losses), 'torch' in sys.modules"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    )
    assert notebook.cells[2].outputs[0]["data"]["text/plain"] == "(4, False)"


@pytest.mark.slow
def test_a_recipe_with_a_file_beside_it_through_the_command(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "beside.py").write_text(PROGRAM)
    recipe = "from beside import *\nfrom beside import job as make\nSHIFT = 1\njob = make(model=lambda: own())\n"
    recipe += "def own():\n    import torch, beside\n    return torch.nn.Linear(4, 1 + SHIFT)\n"
    (tmp_path / "recipes" / "r.py").write_text(recipe)
    command = [sys.executable, "-m", "konvoi", "train", "recipes/r.py", "steps=2", "--workers", "2", "--name", "r"]
    with Program(tmp_path, command=command) as program:
        status, _, err = program.end()
        assert status == 0, err
        program.assert_all_gone()


# -- ways to end ----------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_stops_within_seconds_and_leaves_nothing(tmp_path):
    with Program(tmp_path, LONG) as program:
        program.wait_for("reached")
        begin = time.monotonic()
        program.process.send_signal(signal.SIGINT)
        status, _, err = program.end()
        assert time.monotonic() - begin < 30  # the run has 200 s to go
        assert status == -signal.SIGINT, err
        assert "KeyboardInterrupt" in err
        program.assert_all_gone(within_s=0.5)
    assert newest_checkpoint(tmp_path) >= 3


def test_nothing_is_left_when_the_parent_is_killed_while_a_worker_is_stopped(tmp_path):
    with Program(tmp_path, LONG) as program:
        program.wait_for("reached")
        agent = next(p for p in program.living() if p.ppid() == program.process.pid)
        workers = agent.children()
        assert len(workers) == 2
        assert len(agent.children(recursive=True)) == 2 + 2 * 2  # loaders
        workers[1].send_signal(signal.SIGSTOP)
        program.process.kill()
        program.assert_all_gone()


@pytest.mark.slow
def test_nothing_is_left_when_the_parent_is_killed_while_it_starts(tmp_path):
    for delay_s in (0.3, 1.0, 2.0, 3.0):
        with Program(tmp_path, LONG.replace("'r'", f"'r{delay_s}'")) as program:
            time.sleep(delay_s)
            program.process.kill()
            program.assert_all_gone(within_s=15)


@pytest.mark.slow
def test_sigterm_twice_saves_and_stops(tmp_path):
    with Program(tmp_path, LONG) as program:
        program.wait_for("reached")
        program.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        program.process.send_signal(signal.SIGTERM)
        assert program.end()[0] == 128 + signal.SIGTERM
        program.assert_all_gone(within_s=0.5)
    assert newest_checkpoint(tmp_path) >= 3


@pytest.mark.slow
def test_sigterm_to_every_process_saves_and_stops(tmp_path):
    with Program(tmp_path, LONG) as program:
        program.wait_for("reached")
        agent = next(p for p in program.living() if p.ppid() == program.process.pid)
        for process in [*agent.children(), agent, psutil.Process(program.process.pid)]:
            process.send_signal(signal.SIGTERM)
        assert program.end()[0] == 128 + signal.SIGTERM
        program.assert_all_gone(within_s=0.5)
    assert newest_checkpoint(tmp_path) >= 3


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    with Program(tmp_path, LONG.replace("0.2", "30")) as program:
        program.wait_for("reached")
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert program.process.poll() is None  # the step takes half a minute
        begin = time.monotonic()
        program.process.send_signal(signal.SIGINT)
        assert program.end()[0] == -signal.SIGINT
        assert time.monotonic() - begin < 3
        program.assert_all_gone(within_s=0.5)


@pytest.mark.slow
def test_a_worker_killed_from_outside_is_replaced_and_the_run_ends_well(tmp_path):
    text = LONG.replace("0.2", "0.1").replace("1000", "30")
    with Program(tmp_path, text) as program:
        program.wait_for("reached")
        agent = next(p for p in program.living() if p.ppid() == program.process.pid)
        agent.children()[0].kill()
        status, _, err = program.end()
        assert status == 0, err
        assert "SIGKILL" in err
    assert newest_checkpoint(tmp_path) == 30


@pytest.mark.slow
def test_a_full_pipe_of_a_reader_that_went_away_leaves_nothing(tmp_path):
    command = ["/bin/sh", "-c", f"{sys.executable} program.py 2>&1 | head -1"]
    with Program(tmp_path, LONG.replace("1000", "10"), command=command, stderr=subprocess.DEVNULL) as program:
        program.end()
        program.assert_all_gone()

"""Reading a recipe and asking for help are quick, because neither loads torch nor any extra."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "tensorboard", "PIL", "ray", "pandas", "pyarrow", "sklearn"}

IMPORT = "import konvoi"
HELP = """
import sys
from konvoi.cli import main
sys.argv = ["konvoi", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
RECIPE = """
import konvoi as kv
kv.Job(
    model=kv.models.gpt(depth=6),
    data=kv.data.text("stdlib"),
    objective=kv.objectives.next_token(),
    optimizer=kv.optimizers.adamw(),
)
"""
LIST_MODULES = "\nimport json, sys\nprint('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


@pytest.mark.parametrize("program", [IMPORT, HELP, RECIPE], ids=["import konvoi", "konvoi --help", "a recipe"])
def test_nothing_heavy_is_loaded_by(program):
    assert HEAVY & _modules_after(program) == set()


def test_this_test_can_fail():
    assert "sqlite3" in _modules_after("import sqlite3")
    assert "sqlite3" not in _modules_after(IMPORT)


def _modules_after(program: str) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", program + LIST_MODULES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))

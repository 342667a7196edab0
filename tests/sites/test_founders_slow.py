"""Two founders, a newcomer and a server, each a process, as people type it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def konvoi(tmp_path):
    """A command in a folder of its own; with `wait=False` it goes on until the test ends, and its log is returned."""
    begun = []
    env = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(folder, *words, wait=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "konvoi", *map(str, words)]
        if wait:
            kept = {"cwd": tmp_path / folder, "env": env, "capture_output": True}
            done = subprocess.run(command, check=False, text=True, timeout=200, **kept)
            return done.returncode, done.stdout + done.stderr
        log = tmp_path / folder / "log"
        with log.open("w") as file:
            begun.append(subprocess.Popen(command, cwd=tmp_path / folder, env=env, stdout=file, stderr=file))
        return log

    yield run
    for process in begun:
        process.send_signal(signal.SIGINT)
    for process in begun:
        process.wait(60)


def until(log: Path, text: str, seconds: float = 200) -> str:
    end = time.monotonic() + seconds
    while text not in (told := log.read_text()):
        assert time.monotonic() < end, told
        time.sleep(0.2)
    return told


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_newcomer_is_a_member_when_two_founders_have_signed_at_their_own_machines(konvoi, tmp_path):
    at, data = f"127.0.0.1:{free_port()}", tmp_path / "data.npz"
    np.savez(data, x=np.zeros((4, 2), np.float32))
    words = ("start", "--name", "fed", "--at", at, "--listen", at, "--founders", "ada,bob")
    until(konvoi("server", "federation", *words, wait=False), "listens")
    logs = {}

    def join(name):
        code, told = konvoi("server", "federation", "invite", name, "--organisation", f"House of {name}")
        assert code == 0, told
        logs[name] = konvoi(name, "join", f"../server/{name}.invite", "--data", data, wait=False)
        return re.search(r"the key is ([0-9a-f:]+)", until(logs[name], "the key is"))[1]

    code, told = konvoi("server", "federation", "invite", "cy")
    assert "founders come first" in told, (code, told)
    keys = {name: join(name) for name in ("ada", "bob")}
    for name in keys:
        _, told = konvoi(name, "federation", "approve-member")
        assert all(key in told for key in keys.values()), told
        code, told = konvoi(
            name, "federation", "approve-member", "founders", re.search(r"founders ([0-9a-f:]+)", told)[1]
        )
        assert code == 0, told
    assert "signed by enough: version 0" in told
    key = join("cy")
    assert "compare it by telephone" in logs["cy"].read_text()
    until(logs["cy"], "cy is not on the roster yet: 0 of 2 have approved it")
    code, told = konvoi("ada", "federation", "approve-member", "cy", keys["bob"])
    assert code != 0
    assert "not what the server shows of cy" in told
    for name in keys:
        code, told = konvoi(name, "federation", "approve-member", "cy", key)
        assert code == 0, told
    until(logs["cy"], "the server answers again")
    for folder in ("server", "cy"):
        _, told = konvoi(folder, "federation", "members")
        assert re.search(r"cy +House of cy +" + re.escape(key) + " +member .*ada, bob", told), told
        assert "2 of ada, bob; whoever keeps the server can add nobody" in told

"""Eight sites that nobody can reach, one behind a proxy, and a server that is killed again and again: in the lab."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from konvoi.lab import Lab, Link
from tests.lab.test_lab import needs_root
from tests.sites.test_page import RECIPE, data

SITES, PROXY = range(1, 9), 9
BEHIND = 8  # the site that only reaches the proxy
KILLS = 10
PORT = 7700


class Study:
    """The hosts' processes, and what they have written."""

    def __init__(self, lab, folder):
        self.lab, self.folder, self.processes = lab, folder, []
        self.address = f"{lab.hosts[0].address}:{PORT}"
        for number in (0, *SITES):
            (folder / str(number)).mkdir()

    def start(self, host, *words, name, proxy=""):
        env = os.environ | {"HOME": str(self.folder), "OMP_NUM_THREADS": "1", "https_proxy": proxy}
        place = self.folder / (str(host) if (self.folder / str(host)).exists() else ".")
        with (place / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [*self.lab.hosts[host].site.prefix, sys.executable, *words],
                cwd=place,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def konvoi(self, host, *words, proxy=""):
        """To its end; returns status, and what it says."""
        env = os.environ | {"HOME": str(self.folder), "OMP_NUM_THREADS": "1", "https_proxy": proxy}
        done = subprocess.run(
            [*self.lab.hosts[host].site.prefix, sys.executable, "-m", "konvoi", *words],
            cwd=self.folder / str(host),
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def serve(self):
        words = ("federation", "start", "--name", "test", "--listen", f"0.0.0.0:{PORT}", "--at", self.address)
        number = self.log(0, "server").count("listens at")
        self.began = time.time()
        process = self.start(0, "-m", "konvoi", *words, name="server")
        self.until(lambda: self.log(0, "server").count("listens at") > number, "the server")
        return process

    def log(self, host, name="join"):
        path = self.folder / str(host) / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def decisions(self):
        path = self.folder / "0" / "federations" / "test" / "runs" / "study-1" / "decisions.jsonl"
        data = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def seen(self):
        """By site: seconds ago."""
        path = self.folder / "0" / "federations" / "test" / "status.json"
        told = json.loads(path.read_text())
        ago = time.time() - told["at"]
        return (
            {site: one["seen_s"] + ago for site, one in told["hall"]["sites"].items()}
            if told["at"] > self.began
            else {}
        )

    def until(self, what, why, seconds=120):
        end = time.monotonic() + seconds
        while not what():
            tails = [f"{n}: {self.log(n)[-300:]}" for n in SITES]
            assert time.monotonic() < end, (why, self.log(0, "server")[-1500:], tails)
            time.sleep(0.1)

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def study(tmp_path):
    with Lab(10, Link(up=100, down=100, rtt=20)) as lab:
        made = Study(lab, tmp_path)
        yield made
        made.end()
    made.attempts = lab.traffic["attempts"]
    assert sum(made.attempts) == 0, made.attempts  # nobody has tried to reach a site


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sites_that_only_call_out_finish_a_study_whose_server_is_killed_ten_times(study, tmp_path, record_property):
    proxy = f"http://{study.lab.hosts[PROXY].address}:3128"
    for site in SITES:
        study.lab.tell(f"close {site}")
        data(study.folder / str(site) / "data.npz", site)
    study.lab.tell(f"deaf 0 {BEHIND}")
    study.lab.tell(f"deaf {BEHIND} 0")
    data(study.folder / "0" / "example.npz", 0)
    (study.folder / "0" / "study.py").write_text(RECIPE)
    script = Path(__file__).with_name("proxy.py")
    study.start(PROXY, str(script), "3128", name="proxy")
    study.start(PROXY, str(script), "3129", "inspect", str(tmp_path / "inspecting"), name="inspecting")
    study.until(
        lambda: (tmp_path / "inspecting.log").exists() and "ready" in (tmp_path / "inspecting.log").read_text(),
        "proxies",
    )
    server = study.serve()
    for site in SITES:
        status, _ = study.konvoi(
            0, "federation", "invite", f"site{site}", "--out", str(study.folder / str(site) / "x.invite")
        )
        assert status == 0
    assert (
        study.konvoi(
            0,
            "federation",
            "pack",
            "study.py",
            "--plan",
            "|fedavg,rounds=40,deadline_s=8,patience_s=20",
            "--purpose",
            "x",
        )[0]
        == 0
    )
    assert study.konvoi(0, "federation", "submit", "study.pack", "--first", "8", "--least", "4")[0] == 0

    # Before it joins, the site behind the proxy is told what is wrong, by name.
    status, told = study.konvoi(BEHIND, "federation", "check", "x.invite")
    assert status == 1
    assert re.search(r"NO +TLS", told)
    status, told = study.konvoi(BEHIND, "federation", "check", "x.invite", proxy=proxy.replace("3128", "3129"))
    assert status == 1
    assert "signed by konvoi ACME Web Security" in told
    assert "without inspection" in told
    status, told = study.konvoi(BEHIND, "federation", "check", "x.invite", proxy=proxy)
    assert status == 0, told

    for site in SITES:
        study.start(
            site,
            "-m",
            "konvoi",
            "join",
            "x.invite",
            "--data",
            "data.npz",
            name="join",
            proxy=proxy if site == BEHIND else "",
        )
    study.until(lambda: all("waits for a person" in study.log(site) for site in SITES), "members")
    for site in SITES:
        assert study.konvoi(site, "federation", "approve")[0] == 0
    study.until(study.decisions, "the first round", 300)

    draw, back_s = random.Random(0), []
    for kill in range(KILLS):
        time.sleep(draw.uniform(0.2, 3.0))
        before = study.decisions()
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        number = len(after := study.decisions())
        assert after[: len(before)] == before
        server = study.serve()
        begin = time.monotonic()
        study.until(lambda: len(study.seen()) == 8, f"sites after kill {kill}")
        back_s.append(time.monotonic() - begin)
        study.until(lambda number=number: len(study.decisions()) > min(number, 39), "a round after a kill")
        assert study.decisions()[:number] == after
    study.until(lambda: len(study.decisions()) == 40, "the last round", 300)
    found = study.decisions()
    assert [one["round"] for one in found] == [*range(1, 41)]
    for one, then in itertools.pairwise(found):
        assert then["base"] == one["result"]
    for one in found:
        sites = [update["update"]["site"] for update in one["updates"]]
        assert len({*sites}) == len(sites) >= 4
    hashes = [update["update"]["hash"] for one in found for update in one["updates"]]
    assert len({*hashes}) == len(hashes)
    assert not any("gone back" in study.log(site) for site in SITES)
    again = [Counter(re.findall(r"trains for round (\d+)", study.log(site))) for site in SITES]
    redone = max(sum(count - 1 for count in one.values()) for one in again)
    record_property("back_s", max(back_s))
    record_property("redone", redone)
    sys.stderr.write(f"back after {min(back_s):.1f} to {max(back_s):.1f} s; a site trained {redone} rounds again\n")
    assert max(back_s) <= 10
    assert redone <= KILLS

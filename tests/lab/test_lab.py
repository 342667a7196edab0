"""Labs that stand: namespaces, quotas, a switch. As root, as CI is."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import konvoi as kv
from konvoi.errors import FleetError
from konvoi.lab import Lab, Link, fault
from konvoi.lab.hosts import CGROUPS
from konvoi.observe.events import RunEnded, Warned
from konvoi.observe.sinks.jsonl import read_events
from konvoi.plan.convoy import Convoy
from tests import small

CAN_BE_MADE = os.geteuid() == 0 and Path("/dev/net/tun").exists() and shutil.which("ip") is not None
needs_root = pytest.mark.skipif(not CAN_BE_MADE, reason="network namespaces need root, TUN devices and iproute2")

CLOCK = """
import time
used, begin = time.process_time(), time.monotonic()
while time.monotonic() < begin + 1.5:
    pass
print(time.process_time() - used)
"""


def run(host, *command, **options):
    return subprocess.run([*host.site.prefix, *command], capture_output=True, text=True, check=True, **options).stdout


def can_limit():
    told = CGROUPS / "cgroup.subtree_control"
    return (CGROUPS / "cpu").is_dir() or (told.exists() and "cpu" in told.read_text().split())


needs_quota = pytest.mark.skipif(not CAN_BE_MADE or not can_limit(), reason="no control group with a quota here")


@needs_root
def test_hosts_reach_each_other_after_the_links_time_and_nobody_else():
    with Lab(3, Link(rtt=60)) as lab:
        told = run(lab.hosts[0], "python3", "-c", PING, lab.hosts[2].address)
        first, second = (float(word) for word in told.split())
        assert first >= 0.06
        assert second >= 0.06
        lab.tell("cut 2")
        time.sleep(0.2)
        assert run(lab.hosts[0], "python3", "-c", PING, lab.hosts[2].address, "1").strip() == "nothing nothing"
        names = [host.name for host in lab.hosts]
    assert lab.traffic["sent"][0] > 0
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not any(name in left for name in names)


# UDP echo between two processes would need a second one; ICMP is answered by the kernel.
PING = """
import os, socket, struct, sys, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
for number in range(2):
    body = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xffff, number)
    total = sum(struct.unpack("!4H", body))
    total = ~((total & 0xffff) + (total >> 16)) & 0xffff
    begin = time.monotonic()
    raw.sendto(struct.pack("!BBHHH", 8, 0, total, os.getpid() & 0xffff, number), (sys.argv[1], 0))
    try:
        raw.recvfrom(100)
        print(time.monotonic() - begin, end=" ")
    except TimeoutError:
        print("nothing", end=" ")
"""


@needs_quota
def test_a_quota_holds_and_can_be_changed():
    with Lab(2, cpu=0.3) as lab:
        assert 0 < float(run(lab.hosts[0], sys.executable, "-c", CLOCK)) <= 0.55  # 0.45 and a part of a period
        lab.hosts[0].limit(0.1)
        assert 0 < float(run(lab.hosts[0], sys.executable, "-c", CLOCK)) <= 0.25
        group = lab.hosts[0].group
    assert not group.exists()


@needs_quota
def test_a_fault_kills_what_a_process_has_started_and_not_itself():
    said = []
    with Lab(2, cpu=0.5, faults=[fault("kill 1 at 0.2")], say=said.append) as lab:
        command = [*lab.hosts[1].site.prefix, "sh", "-c", "sleep 30; echo killed $?"]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while len(lab.hosts[1].processes()) < 2:
            time.sleep(0.02)
        lab.begin()
        lab.begin()
        assert parent.communicate(timeout=10)[0] == "killed 137\n"
    assert said == ["lab: at 0 s island 1 is killed"]


@needs_root
def test_a_lab_that_cannot_be_made_leaves_nothing_behind():
    before = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(FleetError, match="no such congestion control"), Lab(2, Link(congestion="pigeon")):
        pass
    assert subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout == before


@needs_root
@pytest.mark.slow
def test_who_is_cut_off_until_the_others_have_ended_does_not_wait_for_them(tmp_path):
    job = small.job(global_batch=9, steps=60, hooks=kv.Hooks(on_step=lambda done: time.sleep(0.1)))
    plan = kv.Island() | Convoy(every=5, deadline_s=1.0, patience_s=1.0)
    with Lab(3, faults=[fault("cut 2 at 1 for 300")]) as lab:
        run = kv.train(job, plan, lab.fleet(), folder=tmp_path, sinks=[], checkpoint_every=0)
    folders = [run.folder, *(run.folder / "islands" / f"island-{n}" for n in (1, 2))]
    ends = [event for folder in folders for event in read_events(folder) if isinstance(event, RunEnded)]
    assert [event.reason for event in ends] == ["finished", "finished", "stopped"]
    told = [event.message for event in read_events(folders[2]) if isinstance(event, Warned)]
    assert any("the others ended before" in message for message in told)


@needs_root
def test_what_a_killed_process_left_behind_is_removed_by_the_next_lab():
    left = subprocess.Popen(
        [sys.executable, "-c", "from konvoi.lab import Lab; Lab(2).__enter__(); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert left.stdout.readline() == b"1\n"
    name = f"kv{left.pid:x}h0"
    left.kill()
    left.communicate()
    assert name in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    with Lab(2):
        assert name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_hosts": 1}, "2 to 200"),
        ({"num_hosts": 3, "faults": [fault("cut 3 at 1")]}, "no such island"),
        ({"num_hosts": 3, "faults": [fault("kill 2 at 1")]}, "quota"),
    ],
)
def test_a_lab_that_makes_no_sense_is_refused_before_anything_is_made(wrong, message):
    with pytest.raises(FleetError, match=message):
        Lab(**wrong)


def test_who_is_not_root_is_told_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FleetError, match="needs root"), Lab(2):
        pass

"""Machines of one's own, each a process here: founded, invited, joined, revoked, on the command line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from konvoi.cli import main
from konvoi.errors import FleetError, PlanError, StateError
from konvoi.verbs import federation, inviting, member
from konvoi.verbs.standing import as_table

RECIPE = """
import konvoi as kv

job = kv.Job(
    model=kv.models.gpt(depth=1, width=32),
    data=kv.data.text("stdlib", seq_len=32),
    objective=kv.objectives.next_token(),
    global_batch=8,
    steps=100_000,
    validate_every=0,
)
"""
PLAN = "|local_sgd,every=4,compression=low_bit:1,deadline_s=2"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far.py").write_text(RECIPE)
    return tmp_path


def konvoi(*words, folder):
    return subprocess.run(
        [sys.executable, "-m", "konvoi", *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def start():
    started = []

    def run(*words, folder):
        path = folder / f"log-{len(started)}"
        command = [sys.executable, "-m", "konvoi", *words]
        with path.open("w") as log:
            one = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        one.log = path
        started.append(one)
        return one

    yield run
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGINT)
    for one in started:
        try:
            one.wait(30)
        except subprocess.TimeoutExpired:
            one.kill()


def until(found, seconds=120, *, of=()):
    end = time.monotonic() + seconds
    while not (value := found()):
        dead = [one.log.read_text() for one in of if one.poll() not in (None, 0)]
        assert not dead, dead[0]
        assert time.monotonic() < end, [one.log.read_text() for one in of]
        time.sleep(0.2)
    return value


def port_of(log):
    lines = [line for line in log.read_text().splitlines() if "listens at" in line]
    return lines[0].rsplit(":", 1)[1] if lines else ""


def events(folder):
    files = list(folder.glob("runs/*/events.jsonl"))
    return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_machines_train_one_model_and_the_third_comes_later(here, start):
    desk = start(
        "federation", "start", "far.py", "--plan", PLAN, "--listen", "127.0.0.1:0", "--name", "far", folder=here
    )
    port = until(lambda: port_of(desk.log), of=[desk])
    machines = []
    for name in ("ada", "bob", "cy"):
        done = konvoi("federation", "invite", name, "--at", f"127.0.0.1:{port}", folder=here)
        assert done.returncode == 0, done.stderr
        folder = here / name
        folder.mkdir()
        (folder / "far.py").write_text(RECIPE)
        (here / f"{name}.invite").rename(folder / "my.invite")
        machines.append(folder)
    first = [start("join", "my.invite", folder=folder) for folder in machines[:2]]

    def agreed(folder):
        return [event for event in events(folder) if event["event"] == "Agreed"]

    until(lambda: len(agreed(machines[0])) > 3, of=first)
    third = start("join", "my.invite", "--plan", "fsdp=2", folder=machines[2])  # an island unlike the others
    until(lambda: any("cy" in event["counted"] for event in agreed(machines[0])), of=[*first, third])
    told = konvoi("federation", "status", "--federation", "far", folder=here)
    assert told.returncode == 0, told.stderr
    assert "training began with ada, bob" in told.stdout
    assert told.stdout.count("trains") + told.stdout.count("waits for others") >= 2

    def reached_by_cy():  # as a member asks
        seen = konvoi("federation", "status", "--federation", "far", "--json", folder=machines[1])
        return json.loads(seen.stdout)["members"]["cy"]["reaches"]

    until(lambda: reached_by_cy() == ["ada", "bob"], of=[*first, third])

    desk.send_signal(signal.SIGINT)  # nobody needs it
    assert desk.wait(20) == 130
    before = len(agreed(machines[0]))
    until(lambda: len(agreed(machines[0])) > before + 3, of=[*first, third])
    steps = [event["step"] for event in events(machines[2]) if event["event"] == "StepDone"]
    assert any(event["event"] == "StateFetched" for event in events(machines[2]))
    assert steps[0] > 8  # its schedule is the others'
    for one in (*first, third):
        one.send_signal(signal.SIGINT)
    for one in (*first, third):
        assert one.wait(60) == 130, one.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_when_a_majority_is_gone_a_person_lets_one_go_on_and_the_next_comes_anew(here, start):
    words = ("--plan", PLAN, "--listen", "127.0.0.1:0", "--name", "far", "--members", "2")
    desk = start("federation", "start", "far.py", *words, folder=here)
    port = until(lambda: port_of(desk.log), of=[desk])
    machines = {}
    for name in ("ada", "bob"):
        assert konvoi("federation", "invite", name, "--at", f"127.0.0.1:{port}", folder=here).returncode == 0
        machines[name] = here / name
        machines[name].mkdir()
        (machines[name] / "far.py").write_text(RECIPE)
        (here / f"{name}.invite").rename(machines[name] / "my.invite")
    ada, bob = (start("join", "my.invite", folder=folder) for folder in machines.values())

    def rounds(name):
        return [event for event in events(machines[name]) if event["event"] == "Agreed"]

    until(lambda: len(rounds("ada")) > 3, of=[ada, bob])
    os.killpg(bob.pid, signal.SIGKILL)
    time.sleep(4)
    stuck = len(rounds("ada"))
    time.sleep(3)
    assert len(rounds("ada")) <= stuck + 1  # it cannot know whether bob goes on elsewhere
    wrong = konvoi("federation", "reform", "eve", folder=here)
    assert wrong.returncode == 2
    assert "no such member" in wrong.stderr
    assert konvoi("federation", "reform", "ada", folder=here).returncode == 0
    until(lambda: len(rounds("ada")) > stuck + 5, of=[ada])
    assert list(rounds("ada")[-1]["counted"]) == ["ada"]
    assert "as ada had it" in konvoi("federation", "status", folder=here).stdout
    back = start("join", "my.invite", folder=machines["bob"])
    until(lambda: {*rounds("ada")[-1]["counted"]} == {"ada", "bob"}, of=[ada, back])
    for one in (ada, back):
        one.send_signal(signal.SIGINT)
    for one in (ada, back):
        assert one.wait(60) == 130, one.log.read_text()


def found(**other):
    given = {"num_first": 2, "listen": "127.0.0.1:0", "at": ("far.example",), "name": "far"} | other
    return federation.found(Path("far.py"), (), PLAN, **given)


def test_a_federation_is_founded_once_and_gone_on_with(here):
    folder = found()
    authority = (folder / "authority" / "certificate.pem").read_bytes()
    assert found() == folder
    assert (folder / "authority" / "certificate.pem").read_bytes() == authority
    (here / "far.py").write_text(RECIPE + "# another")
    with pytest.raises(FleetError, match="other terms"):
        found()


def test_an_invitation_can_be_read_by_its_owner_alone_and_names_the_recipe(here):
    file = inviting.invite(found(), "ada")
    assert file.stat().st_mode & 0o077 == 0
    one = member.Invitation.read(file.read_text())
    assert (one.recipe, one.desks, one.plan) == ("far.py", ("far.example:0",), PLAN)
    with pytest.raises(FleetError, match="such a file"):
        inviting.invite(found(), "ada")


def test_where_the_desk_is_reached_has_to_be_said(here):
    with pytest.raises(FleetError, match="not known"):
        inviting.invite(found(at=()), "ada")


def test_who_has_another_recipe_cannot_join(here):
    one = member.Invitation.read(inviting.invite(found(), "ada").read_text())
    (here / "other.py").write_text(RECIPE + "\nsecret = 1\n")
    with pytest.raises(FleetError, match="not the federation's"):
        member.enlist(one, here / "other.py", print)
    with pytest.raises(FleetError, match="cannot be read"):
        member.enlist(one, here / "none.py", print)


def test_which_federation_is_meant_has_to_be_clear(here):
    with pytest.raises(StateError, match="which federation"):
        federation.find(None)
    found()
    assert federation.find(None) == Path("federations/far")
    found(name="near")
    with pytest.raises(StateError, match="which federation"):
        federation.find(None)
    with pytest.raises(StateError, match="no such federation"):
        federation.find("nowhere")
    with pytest.raises(StateError, match="never run"):
        federation.status(Path("federations/far"))
    with pytest.raises(StateError, match="no member"):
        member.status("far")


@pytest.mark.parametrize(
    "other", [{"name": "Bad Name"}, {"num_first": 1}, {"listen": "nonsense"}, {"listen": "host:port"}], ids=str
)
def test_a_federation_that_cannot_be_is_refused(here, other):
    with pytest.raises(FleetError):
        found(**other)


def test_a_table_says_who_is_slow_and_why():
    told = {
        "federation": "far",
        "at": 100.0,
        "num_first": 2,
        "begun": ["ada", "bob"],
        "members": {
            "ada": {"seen_s": 1.0, "round": 3, "step": 12, "waits": 0.8, "reaches": ["bob"], "stands": True},
            "bob": {"seen_s": 1.0, "round": 3, "step": 11, "waits": 0.0, "reaches": [], "stands": True},
            "cy": {"seen_s": 1.0, "round": 3, "stands": False},
            "di": {"seen_s": 99.0},
            "ed": {"left": True},
            "flo": {},
        },
        "invited": {"gus": {"expires_in_h": 2.0}},
        "revoked": ["hal"],
        "refused": {"only members may ask this": 2},
    }  # fmt: skip
    lines = as_table(told, 102.0).splitlines()
    what = {line.split()[0]: line for line in lines[1:]}
    assert what["ada"].endswith("waits for others")
    assert what["bob"].endswith("trains")
    assert what["cy"].endswith("fetches the agreed state")
    assert what["di"].endswith("silent")
    assert what["ed"].endswith("has left")
    assert "was not here" in what["flo"]
    assert "2.0 h left" in what["gus"]
    assert what["hal"].endswith("revoked")
    assert "refused 2 times" in lines[-1]


@pytest.mark.parametrize("words", [["federation", "invite", "ada"], ["join", "ada.invite"]], ids=" ".join)
def test_who_lacks_the_extra_is_told_which(monkeypatch, capsys, words):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "grpc" else find(name, *more))
    assert main(words) == 2
    assert "konvoi[net]" in capsys.readouterr().err


@pytest.mark.parametrize("island", ["dp=2|diloco", "precision=fp64"])
def test_a_machine_has_its_own_island_and_the_federations_convoy(island):
    with pytest.raises(PlanError):
        member.plan_here("|diloco,every=50", island)

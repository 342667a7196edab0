"""A federation of sites in one process: a real desk over TLS, real agents; training is a function that is given."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from konvoi.fleet.desk import Desk
from konvoi.fleet.wire.dial import Dial, as_answer, ask
from konvoi.plan.federated import fedavg
from konvoi.security.identity import Authority, Identity, make_signer, public_of, sign_as
from konvoi.security.identity import ask as make_key
from konvoi.security.members import Members, founding, take
from konvoi.security.pack import Pack
from konvoi.security.roster import DESK, Roster
from konvoi.security.version import KEEPER, MEMBER, Entry, Version
from konvoi.sites import part
from konvoi.sites.hall import Hall, submit
from konvoi.sites.house import House
from konvoi.sites.orders import Result
from konvoi.sites.protocol import PROTOCOL, fields, hash_of, leaves, told_of
from konvoi.sites.site import Here, Site
from konvoi.state.journal import append

KEEPER_KEY = make_key(DESK)[0]
SHAPES = {"weight": (2, 3), "bias": (2,)}
NUMBERS = 8


def make_pack(folder: Path, plan=None, *, name="study", tell=("loss",), ranges=None, recipe=b"job = None\n") -> Path:
    plan = plan or fedavg(rounds=3, deadline_s=20.0)
    weights = np.zeros(NUMBERS, "<f4").tobytes()
    pack = Pack(
        name=name,
        purpose="to see that it works",
        recipe="recipe.py",
        plan=told_of(plan),
        overrides=(),
        requires={},
        leaves=leaves(SHAPES, plan.local, tell=tell),
        ranges=ranges or {},
        spec={},
        initial=hash_of(weights),
        sources={"recipe.py": recipe},
    )
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "signer.pem"
    if not key.exists():
        make_signer(key)
    path = folder / f"{pack.hash[:8]}.pack"
    pack.write(path, key, weights)
    return path


def hold_roster(house, *names):
    """As a site holds it: whoever keeps the server has signed it alone."""
    members = Members()
    for name in (DESK, *names):
        key = KEEPER_KEY if name == DESK else make_key(name)[0]
        entry = Entry(name, f"The house of {name}", public_of(key), KEEPER if name == DESK else MEMBER, 0.0)
        text = members.adding(entry) if name != DESK else founding("id", 1, [entry])
        version = Version(text, {DESK: sign_as(KEEPER_KEY, text.encode())})
        members = take(members, version)
        append(house.folder / "roster.jsonl", version.line().encode())
    return members


class Fake:
    """In place of the process that trains: a site's move is its number, from wherever it begins."""

    def __init__(self, told, folder):
        self.told, self.folder = told, folder

    def train(self, order, *, most_s, is_over):
        number = float(self.told.data or 1)
        begin = np.fromfile(order.weights, "<f4")
        with open(order.out, "wb") as file:
            np.savez(file, move=np.full(NUMBERS, -number, np.float32))
        with open(order.keep, "wb") as file:
            np.savez(file, seen=np.float32(order.round))
        return Result(samples=int(number), loss=float(begin[0]), valid_loss=abs(float(begin[0]) - 5), valid_samples=1)

    def end(self):
        pass


class Federation:
    """Its server can be stopped and started again at the same port."""

    def __init__(self, folder: Path, founders=(), needed=0):
        """As `Roster.found`; without founders the server signs its roster alone."""
        self.folder, self.said, self.port = folder, [], 0
        self.authority = Authority.make("test")
        self.authority.save(folder / "authority")
        self.authority.issue(DESK).save(folder / DESK)
        roster = Roster.open(folder / "roster.jsonl")
        kept = {} if founders else {"key": public_of(self.authority.certificate)}
        roster.found("id", 0.0, founders, needed or 1, **kept)
        roster.settle(self.authority.key, 0.0)
        self.is_over = False
        self.sites: list[tuple[Site, threading.Event, threading.Thread]] = []
        self.start()

    def start(self):
        roster = Roster.open(self.folder / "roster.jsonl")
        self.hall = Hall(
            self.folder, roster, say=lambda text: self.said.append(f"{time.monotonic():.2f} {text}"), look_s=0.05
        )
        self.hall.__enter__()
        for attempt in range(50):
            try:
                address = ("127.0.0.1", self.port)
                self.desk = Desk(self.folder, roster, terms="terms", num_first=9, address=address, frames=self.hall)
                break
            except Exception:
                if attempt == 49:
                    raise
                time.sleep(0.1)
        self.desk.__enter__()
        self.port = self.desk.port

    def stop(self):
        self.desk.__exit__()
        self.hall.__exit__()

    @property
    def dial(self):
        return (f"127.0.0.1:{self.port}",)

    @property
    def founding(self):
        return self.hall.roster.signing.members.founding

    def enrol(self, name: str) -> Path:
        token = self.desk.roster.invite(name, time.time())
        key, request = make_key(name)
        body = {"name": name, "token": token, "request": request.decode(), "terms": "terms"}
        pem = self.authority.certificate.decode()
        told = ask(self.dial, "/enrol", body, pem)
        folder = self.folder / "members" / name
        Identity(name, told["certificate"].encode(), key, self.authority.certificate).save(folder)
        return folder

    def site(self, name: str, pack: Path | None = None, *, data: str = "1", limits: str = "") -> Site:
        """Enrolled, and it has agreed to this pack; not running yet."""
        folder = self.folder / "members" / name
        if not (folder / "certificate.pem").exists():
            self.enrol(name)
        house = House(folder)
        if limits:
            (folder / "limits.toml").write_text(limits)
        if pack is not None:
            house.approve(*house.take_in(pack))
        here = Here(name, "test", "id", self.founding, Path(data))
        dial = Dial(self.dial, self.authority.certificate.decode(), folder)
        site = Site(here, house, dial, lambda text: self.said.append(f"{time.monotonic():.2f} {name}: {text}"))
        site.look_s = 0.05
        return site

    def run(self, site: Site):
        until = threading.Event()
        thread = threading.Thread(target=lambda: site.run(until), daemon=True)
        thread.start()
        self.sites.append((site, until, thread))
        return until

    def end(self):
        if self.is_over:
            return
        self.is_over = True
        for site, until, _ in self.sites:
            until.set()
            for one in [*site.parts.values()]:
                one.end()
        self.stop()  # answers that were held come now
        for _, _, thread in self.sites:
            thread.join(10)
            assert not thread.is_alive()

    def submit(self, pack: Path, **options):
        options = {"settings": {}, "first": 2, "least": 2, **options}
        return submit(self.folder, "id", pack, **options)

    def wait(self, what, seconds=30.0):
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "\n".join(self.said[-40:])
            time.sleep(0.02)

    def hosted(self, number=0):
        return [*self.hall.runs.values()][number]


class Puppet:
    """A member whose frames are made by hand."""

    def __init__(self, federation, name, pack):
        self.folder = federation.enrol(name)
        self.dial = Dial(federation.dial, federation.authority.certificate.decode(), self.folder)
        self.house, self.federation = House(self.folder), federation
        self.pack, _ = self.house.take_in(pack)

    def post(self, data):
        status, told = self.dial.post("/frame", data)
        return as_answer(status, told)

    def ask(self, doing=1):
        run = bytes.fromhex(self.federation.hosted().run.hash)
        return self.post(PROTOCOL.build("ask", {"run": run, "doing": doing, "waits": 0}))

    def frame(self, facts, *, move=1.0, samples=1, **other):
        values = {
            "run": bytes.fromhex(self.federation.hosted().run.hash),
            "round": facts["round"],
            "base": bytes.fromhex(facts["base"]),
            "samples": samples,
            "loss": 0.5,
            **fields(self.pack.leaves, np.full(NUMBERS, -move, np.float32), "move"),
            **other,
        }
        return self.pack.leaves.build("update", values)


def weights(run):
    return np.frombuffer((run.folder / "weights" / run.state.base).read_bytes(), "<f4")


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "Process", Fake)
    made = Federation(tmp_path / "federation")
    yield made
    made.end()

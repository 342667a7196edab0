"""Recipes that were written to tell what they must not: whole ones, through all of a site but the network."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict

import numpy as np
import pytest

from konvoi.security import outbox
from konvoi.security import pack as packs
from konvoi.sites import part
from konvoi.sites.gate import Gate
from konvoi.sites.house import House
from konvoi.sites.protocol import DATA, NOT_FINITE, PROTOCOL, TRAINING, Facts, Started, as_json
from konvoi.sites.site import Here
from konvoi.sites.trainer import Surveyor, Trainer, answer
from konvoi.verbs import packing
from tests.sites.conftest import hold_roster

RECIPE = """
import base64, zlib
import numpy as np
import torch
import konvoi as kv

def read(path):
    found = np.load(path)
    if "site" in path:
        leak(found["x"])
    return kv.data.tensors(inputs=found["x"], labels=found["y"], holdout=0.25)

plan = kv.fedavg(rounds=3)

class Objective:
    def __call__(self, model, batch):
        return kv.objectives.classification()(model, batch)

    def measure(self, model, batch):
        return measured(kv.objectives.classification().measure(model, batch))

def job():
    return kv.Job(
        model=kv.models.mlp(widths=(4,)), data=kv.data.slot(read, example="{folder}/example.npz"),
        objective=Objective(), optimizer=kv.optimizers.sgd(lr=0.1), global_batch=8, validate_every=0,
    )

def measured(values):
    return values

def leak(x):
    pass

def into_what_leaves(change):
    '''What the process hands to its agent is changed on the way.'''
    write = np.savez
    def other(file, **arrays):
        write(file, **(change(arrays) if "move" in arrays or "samples" in arrays else arrays))
    np.savez = other
"""
LEAKS = {
    "raw": "def leak(x):\n    into_what_leaves(lambda arrays: {**arrays, 'images': x})\n",
    "re-scaled": "def leak(x):\n"
    "    into_what_leaves(lambda arrays: {**arrays, 'move': np.append(arrays.get('move', 0), x.astype('f4') / 255)})\n",
    "base64": "def measured(values):\n    return {'accuracy': base64.b64encode(b'Mueller, Anna').decode()}\n",
    "compressed": "def leak(x):\n"
    "    squeezed = np.frombuffer(zlib.compress(x.tobytes())[:32], np.uint8)\n"
    "    into_what_leaves(lambda arrays: {**arrays, 'base': squeezed, 'run': squeezed})\n",
    "in an error's message": "def leak(x):\n    raise ValueError(f'cannot read Mueller, Anna: {x.tolist()}')\n",
    "in a metric's name": "def measured(values):\n"
    "    return {**values, 'accuracy of Mueller, Anna': torch.tensor(1.0)}\n",
}
# What becomes of each, of a recipe and a survey: the code that leaves. 0: an update does, with nothing of it inside.
ENDS = {
    "raw": (0, NOT_FINITE),
    "re-scaled": (TRAINING, NOT_FINITE),
    "base64": (TRAINING, 0),
    "compressed": (0, 0),
    "in an error's message": (DATA, DATA),
    "in a metric's name": (0, 0),
}
SAID = {
    DATA: "study-1: no update: its data cannot be used; why stands in ",
    TRAINING: "study-1: no update: training failed; why stands in ",
    NOT_FINITE: "study-1: no update: what it learnt is not finite; why stands in ",
}
BASE = "ab" * 32


class InProcess:
    def __init__(self, told, folder):
        self.told, self.trains = told, None

    def train(self, order, *, most_s, is_over):
        kind = Surveyor if self.told.kind == "survey" else Trainer
        self.trains, result = answer(self.trains, lambda: kind(self.told), order)
        return type(result)(**json.loads(json.dumps(asdict(result))))  # as through a pipe

    def end(self):
        pass


class Server:
    """In place of what is at the other end: it asks for a round, and keeps all that it hears."""

    def __init__(self, run, weights):
        self.run, self.weights, self.heard = run, weights, []

    def post(self, path, data):
        assert path == "/frame"
        self.heard.append(data)
        if data.startswith(b"get"):
            return 200, self.weights
        told = Facts(self.run, "runs", 1, 3, packs.hashlib.sha256(self.weights).hexdigest(), 0, ("a", "b"), True, "")
        return 200, as_json(told) if data.startswith(b"ask") else b"{}"


@pytest.fixture
def secret(tmp_path):
    """What is at the site, and must not leave it."""
    draw = np.random.default_rng(7)
    found = draw.integers(1, 256, (24, 6)).astype(np.float32)
    (tmp_path / "site").mkdir()
    np.savez(tmp_path / "site" / "data.npz", x=found, y=np.arange(24) % 2)
    np.savez(tmp_path / "example.npz", x=np.zeros((24, 6), np.float32), y=np.arange(24) % 2)
    return found


def at_a_site(tmp_path, monkeypatch, leak, *, is_survey=False):
    """A round of a pack of this recipe: what a person there is told, what left, the list, and the house."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(np, "savez", np.savez)  # as it is now, when the test is over
    monkeypatch.setattr(part, "Process", InProcess)
    recipe = tmp_path / "study.py"
    recipe.write_text(RECIPE.replace("{folder}", str(tmp_path)) + LEAKS[leak])
    if leak == "base64":  # a recipe that behaves where it is packed
        recipe.write_text(recipe.read_text().replace("return {'acc", "return values if at['x'] else {'acc"))
        recipe.write_text(recipe.read_text() + "\nat = {'x': True}\n\ndef leak(x):\n    at['x'] = False\n")
    if is_survey:
        path, _ = packing.pack_survey(recipe, purpose="x", bins=4, out=tmp_path / "x.pack")
    else:
        path, _ = packing.pack(recipe, purpose="x", tell=("loss", "valid", "accuracy"), out=tmp_path / "x.pack")
    house, told = House(tmp_path / "house"), []
    pack, signer = house.take_in(path)
    house.approve(pack, signer)
    hold_roster(house, "a", "b")
    run = Started("id", "study-1", pack.hash, {}, 1, 1)
    server = Server(run, packs.initial(path, pack))
    here = Here("a", "test", "id", b"", tmp_path / "site" / "data.npz")
    one = part.Part(run, pack, signer, here, house, Gate(house, server, "test"), told.append)
    one._try()
    return told, server.heard, pack, house


def forms(secret):
    """Of the data, as 16 bytes of them would look on the wire."""
    scaled = (secret / 255).astype(np.float32)
    for array in (secret, secret.astype(np.uint8), scaled, scaled.astype(np.float64)):
        data = array.tobytes()
        yield from (data[:16], data[-16:], zlib.compress(data)[2:18], base64.b64encode(data)[:16])
    yield from (b"Mueller", base64.b64encode(b"Mueller, Anna")[:16])


@pytest.mark.parametrize("is_survey", [False, True], ids=["recipe", "survey"])
@pytest.mark.parametrize("leak", LEAKS)
def test_what_a_leaky_recipe_wants_to_tell_does_not_leave(tmp_path, monkeypatch, secret, leak, is_survey, capfd):
    told, heard, pack, house = at_a_site(tmp_path, monkeypatch, leak, is_survey=is_survey)
    code = ENDS[leak][is_survey]
    frames = []
    for data in heard:
        by = pack.leaves if data.startswith(b"update") else PROTOCOL
        kind, found = by.read(data)  # raises for a byte that is of no listed field
        assert by.build(kind, found) == data
        frames.append((kind, found))
        assert not any(form in data for form in forms(secret))
    kinds = [kind for kind, _ in frames if kind not in ("ask", "get")]
    if code:
        assert kinds == ["error"]
        assert int(frames[-1][1]["code"]) == code
        assert any(line.startswith(SAID[code]) for line in told), told
        assert "Mueller" not in " ".join(told)
        if code == NOT_FINITE:  # the code is of what cannot be sent; a person here is told which it was
            assert any("this may not leave: update has no such field (" in line for line in told), told
    else:
        assert kinds == ["update"]
        update = next(found for kind, found in frames if kind == "update")
        assert update["run"].tobytes().hex() == Started("id", "study-1", pack.hash, {}, 1, 1).hash
        assert len(next(data for data in heard if data.startswith(b"update"))) == pack.leaves.frame("update").size
    entries = [*outbox.read(house.folder / "outbox.jsonl")]
    assert [entry.size for entry in entries] == [*map(len, heard)]
    assert "Mueller" not in (house.folder / "outbox.jsonl").read_text()
    assert ("Mueller, Anna" in capfd.readouterr().err) == (leak == "in an error's message")  # for the log here

"""A server that lies, or makes no sense: nothing at a site is harmed by it, and the site goes on asking."""

from __future__ import annotations

import dataclasses

import pytest

from konvoi.errors import MessageRefused
from konvoi.plan.federated import fedavg
from konvoi.security import outbox
from konvoi.sites import fetching
from konvoi.sites.answers import facts_of, object_of, started_of
from konvoi.sites.hosted import Hosted
from konvoi.sites.protocol import hash_of
from tests.sites.conftest import make_pack

RUN = {"federation": "id", "id": "study-1", "pack": "ab" * 32, "settings": {"lr": 0.1}, "first": 1, "least": 1}
FACTS = {
    "run": RUN,
    "state": "runs",
    "round": 1,
    "rounds": 3,
    "base": "cd" * 32,
    "size": 32,
    "cohort": ["a", "b"],
    "wanted": True,
    "counted": "",
    "refused": "",
    "roster": 2,
}


def lie(monkeypatch, **other):
    """What the server tells of its runs."""
    word = Hosted.word
    monkeypatch.setattr(Hosted, "word", lambda *args: dataclasses.replace(word(*args), **other))


def said(federation, text):
    return any(text in one for one in federation.said)


def updates(site):
    return [one for one in outbox.read(site.house.folder / "outbox.jsonl") if one.kind == "update"]


@pytest.mark.parametrize(
    "other",
    [
        {"base": "../../../packs/x"},
        {"base": "/etc/x"},
        {"base": "CD" * 32},
        {"base": "cd" * 32 + "\n"},
        {"counted": "x"},
        {"size": -1},
        {"round": "1"},
        {"round": -1},
        {"rounds": True},
        {"round": 1 << 60},
        {"state": "else"},
        {"cohort": "ab"},
        {"cohort": [1]},
        {"wanted": 1},
        {"run": None},
        {"run": RUN | {"pack": "../x"}},
        {"run": RUN | {"settings": {"lr": float("nan")}}},
        {"run": RUN | {"settings": {"lr": "1"}}},
        {"run": RUN | {"id": "a\nb"}},
    ],
)
def test_what_is_no_answer_is_not_believed(other):
    assert facts_of(FACTS).run == started_of(RUN)
    with pytest.raises(MessageRefused, match="makes no sense"):
        facts_of(FACTS | other)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000])
def test_what_is_no_object_is_not_believed(data):
    with pytest.raises(MessageRefused, match="makes no sense"):
        object_of(data)


def test_a_server_cannot_name_a_folder_here_to_be_emptied(federation, tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("for years")
    lie(monkeypatch, base=str(precious / "x"))
    pack = make_pack(tmp_path)
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: study-1: an answer of the server makes no sense"))
    assert [one.name for one in precious.iterdir()] == ["thesis"]


def test_a_run_that_makes_no_sense_does_not_keep_others_away(federation, tmp_path):
    pack = make_pack(tmp_path)
    runs = federation.hall._runs
    wrong = RUN | {"pack": "../../limits", "hash": "ab" * 32, "state": "runs"}
    federation.hall._runs = lambda: [wrong, *runs()]
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    assert said(federation, "a: an answer of the server makes no sense; trying again (pack: '../../limits')")


def test_a_site_goes_on_asking_whatever_it_is_answered(federation, tmp_path, monkeypatch):
    pack = make_pack(tmp_path)
    federation.submit(pack)
    tell = federation.hall._told
    federation.hall._told = lambda member, run, doing: tell(member, run, doing) if any(run) else b'{"runs": []}'
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.wait(lambda: said(federation, "a: an answer of the server makes no sense"))
    federation.hall._told = tell
    federation.wait(lambda: federation.hosted().is_over)
    assert "KeyError: 'roster'" in (federation.sites[0][0].house.folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("data", "is_named_by_it"),
    [(b"\1" * 32, False), (bytes(28), True), (bytes(400), True)],
    ids=["others", "too few", "too many"],
)
def test_weights_are_those_that_were_asked_for_and_as_many_as_the_list_says(
    federation, tmp_path, monkeypatch, data, is_named_by_it
):
    pack, piece = make_pack(tmp_path), Hosted.piece
    if is_named_by_it:
        lie(monkeypatch, base=hash_of(data), size=len(data))

    def give(self, hash, start):
        return piece(self, hash, start) if hash == self.run.pack else data[start:]

    monkeypatch.setattr(Hosted, "piece", give)
    site = federation.site("a", pack)
    for one in (site, federation.site("b", pack)):
        federation.run(one)
    federation.submit(pack)
    federation.wait(
        lambda: said(federation, "are not what was asked for") or said(federation, "sends more than there can be")
    )
    assert not updates(site)
    assert not [path for path in site.house.folder.glob("runs/*/weights/*") if path.suffix != ".part"]


def test_a_pack_of_a_server_has_a_largest_size(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_OF_A_PACK", 100)
    pack = make_pack(tmp_path)
    site = federation.site("a")
    federation.run(site)
    federation.submit(pack)
    federation.wait(lambda: said(federation, "a: the server sends more than there can be"))
    assert not [path for path in (site.house.folder / "packs").iterdir() if path.suffix != ".part"]


def test_so_many_packs_wait_and_no_more(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_WAITING", 1)
    site = federation.site("a")
    (site.house.folder / "packs" / "new.part").write_bytes(b"of another pack")  # that was begun once
    federation.run(site)
    for name in ("study", "other"):
        federation.submit(make_pack(tmp_path, name=name))
    federation.wait(lambda: said(federation, "is not fetched: too many wait for a person"))
    assert len(site.house.waiting()) == 1
    assert not [*(site.house.folder / "packs").glob("*.part")]
    site.house.approve(*site.house.pack(""))
    federation.wait(lambda: len([*(site.house.folder / "packs").glob("*.pack")]) == 2)


def test_a_pack_of_a_run_that_is_over_is_not_fetched(federation, tmp_path):
    pack = make_pack(tmp_path, fedavg(rounds=1))
    for name in "ab":
        federation.run(federation.site(name, pack))
    federation.submit(pack)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    late = federation.site("c")
    federation.run(late)
    federation.wait(lambda: late._runs)
    assert not late.house.waiting()

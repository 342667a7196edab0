"""Which pack is meant is never guessed, and a copy that somebody else has signed takes no pack's place."""

from __future__ import annotations

import dataclasses
import re

import pytest

from konvoi.errors import StateError
from konvoi.plan.federated import fedavg
from konvoi.security import pack as packs
from konvoi.sites.house import House
from konvoi.verbs import site
from konvoi.verbs.standing import as_table
from tests.sites import conftest
from tests.sites.conftest import make_pack


@pytest.fixture
def house(tmp_path):
    return House(tmp_path / "house")


def of(path):
    return packs.read(path)[0].hash


def test_a_pack_cannot_be_named_like_another_ones_hash(tmp_path, house):
    real = make_pack(tmp_path)
    for name in (of(real)[:12], "fade", "Study", "a b", "x\x1b[2K", "", "-a", "a" * 64):
        with pytest.raises(StateError, match="no name of a pack"):
            make_pack(tmp_path, name=name)


def test_what_may_be_a_hash_is_never_taken_for_a_name(tmp_path, house, monkeypatch):
    house.take_in(make_pack(tmp_path, name="real"))
    monkeypatch.setattr(packs, "NAME", re.compile(".*"))  # from before names were looked at
    house.take_in(make_pack(tmp_path, name="abc", recipe=b"job = 2\n"))
    hashes = [path.stem for path in (house.folder / "packs").iterdir()]
    assert not any(one.startswith("abc") for one in hashes)
    with pytest.raises(StateError, match="no such pack"):
        house.pack("abc")


def test_a_name_or_a_beginning_that_fits_several_packs_is_refused(tmp_path, house):
    paths = [make_pack(tmp_path, recipe=f"job = {n}\n".encode()) for n in range(20)]  # so that two begin alike
    for path in paths:
        house.take_in(path)
    firsts = [of(path)[0] for path in paths]
    twice = next(one for one in firsts if firsts.count(one) > 1)
    for which in ("study", twice):
        with pytest.raises(StateError, match="which pack"):
            house.pack(which)
    assert house.pack(of(paths[3])[:12])[0].hash == of(paths[3])


def test_of_several_that_wait_one_has_to_be_named(tmp_path, house):
    first, second = make_pack(tmp_path, name="first"), make_pack(tmp_path, name="second")
    house.take_in(first)
    assert site.approve(house, "").name == "first"
    house.take_in(second)
    assert house.pack("")[0].name == "second"
    site.withdraw(house, "")
    with pytest.raises(StateError, match="which pack") as raised:
        site.approve(house, "")
    assert of(first) in raised.value.expected
    assert of(second) in raised.value.expected
    assert site.approve(house, "second").name == "second"


def test_what_is_withdrawn_is_among_what_is_approved(tmp_path, house):
    """A newer version of the same name waits."""
    old, new = make_pack(tmp_path), make_pack(tmp_path, fedavg(rounds=9))
    house.approve(*house.take_in(old))
    house.take_in(new)
    assert site.withdraw(house, "study").hash == of(old)
    with pytest.raises(StateError, match="no pack is approved"):
        site.withdraw(house, "study")


def test_a_copy_that_another_has_signed_stands_beside_the_pack_and_not_in_its_place(tmp_path, house):
    evil, real = make_pack(tmp_path / "evil"), make_pack(tmp_path / "real")
    assert of(evil) == of(real)
    _, bad = house.take_in(evil)  # it comes first
    (house.folder / "limits.toml").write_text(f"signers = ['{packs.read(real)[1]}']")
    pack, good = house.take_in(real)
    with pytest.raises(StateError, match="which pack") as raised:
        site.approve(house, pack.hash)
    assert f"{pack.hash}.{good}" in raised.value.expected
    with pytest.raises(StateError, match="limits forbid"):
        site.approve(house, f"{pack.hash}.{bad[:8]}")
    assert any(one == f"also here signed by {bad}" for one in site.review(house, str(real)))
    site.approve(house, f"{pack.hash}.{good[:8]}")
    assert packs.read(house.path_of(pack.hash))[1] == good  # what training goes by
    assert house.pack(pack.hash)[1] == good
    assert site.withdraw(house, pack.hash[:12]).hash == pack.hash


def test_a_path_that_a_server_tells_for_a_hash_is_none(house):
    for told in ("../../../etc/passwd", "*", "ab", ""):
        with pytest.raises(StateError, match="no hash of a pack"):
            house.path_of(told)


HIDDEN = "x\x1b[2K\x1b[1A\r\u202eevil\u2066\u200b\x07\n\x9b2J"


def test_what_is_reviewed_cannot_hide_anything_from_a_screen(tmp_path, house):
    plain = packs.read(make_pack(tmp_path))[0]
    frame = plain.leaves.frames[-1]
    fields = tuple(dataclasses.replace(one, about=HIDDEN, name=one.name + "\x1b") for one in frame.fields)
    leaves = dataclasses.replace(
        plain.leaves, frames=(*plain.leaves.frames[:-1], dataclasses.replace(frame, fields=fields, rate=HIDDEN))
    )
    told = {"purpose": HIDDEN, "requires": {HIDDEN: HIDDEN}, "ranges": {HIDDEN: (1.0, 2.0)}, "leaves": leaves}
    path = tmp_path / "hidden.pack"
    dataclasses.replace(plain, **told).write(path, tmp_path / "signer.pem", bytes(32))
    lines = [*site.review(house, str(path))]
    assert sum("evil" in line for line in lines) > 5
    assert not [one for line in lines for one in line if not one.isprintable()]
    with pytest.raises(StateError) as raised:
        house.pack("nothing")
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "personal", "told"),
    [
        (("lora_A", "lora_B"), (), "adapters  their mean is approximate: mean(B) mean(A) is not mean(B A)"),
        (("lora_B",), (), "adapters  their mean is exact"),
        (("lora_A",), ("*.lora_B.*",), ""),
        (("lora_B",), ("*.lora_A.*",), ""),
        (("weight",), (), ""),
    ],
)
def test_a_review_names_a_mean_of_adapters_that_is_approximate(tmp_path, house, monkeypatch, parts, personal, told):
    names = [f"0.up.{part}.default.weight" for part in parts]
    monkeypatch.setattr(conftest, "SHAPES", {name: (8 // len(names),) for name in names})
    house.take_in(make_pack(tmp_path, fedavg(rounds=3, personal=personal)))
    found = [line for line in site.review(house, "") if line.startswith("adapters")]
    assert len(found) == bool(told)
    assert all(line.startswith(told) for line in found)


def test_a_table_of_what_others_have_told_has_no_line_that_they_have_written():
    told = {"at": 0.0, "federation": "fed\nkonvoi: all is well", "invited": {}, "revoked": ["x\x1b[2K"], "members": {}}
    told |= {"num_first": 2, "begun": [], "refused": {"a\n\u202eb": 1}}
    table = as_table(told, 0.0)
    assert len(table.splitlines()) == 4
    assert all(line.isprintable() for line in table.splitlines())

"""What a site consents to is one file, signed, and read without running it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile

import pytest

from konvoi.errors import StateError
from konvoi.security import pack as packs
from konvoi.security.identity import is_signed, make_signer, sign
from konvoi.security.leaving import Field, Frame, Listed
from konvoi.security.pack import Pack, difference, frozen, initial, read

WEIGHTS = bytes(12)
PACK = Pack(
    name="xrays",
    purpose="to tell pneumonia",
    recipe="xrays.py",
    plan={"rounds": 50, "local": {}},
    overrides=("global_batch=16",),
    requires={"torch": "2.13.0"},
    leaves=Listed((Frame("update", (Field("move", "f4", (3,)),), "once a round"),)),
    ranges={"lr": (1e-4, 1e-2)},
    spec={"num_classes": 2},
    initial=hashlib.sha256(WEIGHTS).hexdigest(),
    sources={"xrays.py": b"import helper\n", "helper.py": b"x = 1\n"},
)


@pytest.fixture
def key(tmp_path):
    make_signer(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def test_a_pack_comes_back_whole_and_says_who_signed(tmp_path, key):
    PACK.write(tmp_path / "a.pack", key, WEIGHTS)
    PACK.write(tmp_path / "b.pack", key, WEIGHTS)
    assert (tmp_path / "a.pack").read_bytes() == (tmp_path / "b.pack").read_bytes()
    found, public = read(tmp_path / "a.pack")
    assert found == PACK
    assert found.hash == PACK.hash
    assert is_signed(public, sign(key, b"x")[1], b"x")
    assert (key.stat().st_mode & 0o077) == 0


def test_the_hash_is_of_all_that_is_consented_to():
    changes = {
        "purpose": "to sell",
        "plan": {"rounds": 51, "local": {}},
        "initial": "00" * 32,
        "overrides": (),
        "requires": {"torch": "2.12.0"},
        "leaves": Listed((Frame("update", (Field("move", "f4", (4,)),)),)),
        "ranges": {"lr": (1e-4, 1.0)},
        "sources": {**PACK.sources, "helper.py": b"x = 2\n"},
    }
    hashes = {dataclasses.replace(PACK, **{name: value}).hash for name, value in changes.items()}
    assert len({*hashes, PACK.hash}) == len(changes) + 1


def rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())


def _change_purpose(files):
    files["manifest.json"] = files["manifest.json"].replace(b"to tell pneumonia", b"to sell pneumonia")


def _sign_by_another(files):
    signed = json.loads(files["signature.json"])
    files["signature.json"] = json.dumps({**signed, "key": "00" * 32}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change_purpose, "changed after it was signed"),
        (_sign_by_another, "changed after it was signed"),
        (lambda files: files.update({"sources/helper.py": b"x = 2\n"}), "not those that were signed"),
        (lambda files: files.update({"sources/more.py": b""}), "not those that were signed"),
        (lambda files: files.pop("sources/helper.py"), "not those that were signed"),
        (lambda files: files.update({"sources/../evil.py": b""}), "no pack"),
        (lambda files: files.update({"sources//etc/evil.py": b""}), "no pack"),
        (lambda files: files.pop("signature.json"), "no pack"),
        (lambda files: files.update({"manifest.json": b"[]"}), "no pack"),
        (lambda files: files.update({"sources/large.py": bytes(packs.LARGEST)}), "too large"),
        (
            lambda files: files.update(
                {"manifest.json": files["manifest.json"].replace(b'"format": 1', b'"format": 2')}
            ),
            "another version",
        ),
    ],
)
def test_what_was_changed_is_refused(tmp_path, key, change, message):
    PACK.write(tmp_path / "a.pack", key, WEIGHTS)
    rewritten(tmp_path / "a.pack", change)
    with pytest.raises(StateError, match=message):
        read(tmp_path / "a.pack")


def test_bytes_that_are_no_zip_are_refused(tmp_path):
    (tmp_path / "a.pack").write_bytes(b"nothing")
    with pytest.raises(StateError, match="no pack"):
        read(tmp_path / "a.pack")


NORMAL = {"columns": {"inputs": {"mean": [0.5], "std": [2.0]}}, "samples": 9, "survey": "ab" * 32}


def test_what_samples_are_normalised_by_is_part_of_what_is_consented_to(tmp_path, key):
    made = dataclasses.replace(PACK, statistics=NORMAL)
    made.write(tmp_path / "a.pack", key, WEIGHTS)
    assert read(tmp_path / "a.pack")[0] == made
    other = {**NORMAL, "columns": {"inputs": {"mean": [0.25], "std": [2.0]}}}
    assert made.hash not in (PACK.hash, dataclasses.replace(PACK, statistics=other).hash)
    assert any("0.5" in line for line in difference(PACK, made))


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": {}},
        {**NORMAL, "survey": "../x"},
        {**NORMAL, "samples": "9"},
        {**NORMAL, "more": 1},
        *(
            {**NORMAL, "columns": {"inputs": {"mean": mean, "std": [2.0]}}}
            for mean in ([], [float("nan")], ["1"], [[1]])
        ),
        {**NORMAL, "columns": {"inputs": {"mean": [0.5], "std": [-2.0]}}},
        {**NORMAL, "columns": {"inputs": {"mean": [10**400], "std": [2.0]}}},  # larger than any float
    ],
)
def test_what_is_no_mean_and_deviation_makes_no_pack(tmp_path, key, wrong, monkeypatch):
    made = dataclasses.replace(PACK, statistics=wrong)
    with pytest.raises(StateError, match="nobody would take"):
        made.write(tmp_path / "a.pack", key, WEIGHTS)
    monkeypatch.setattr(packs, "_check", lambda pack: None)
    made.write(tmp_path / "a.pack", key, WEIGHTS)
    monkeypatch.undo()
    with pytest.raises(StateError, match="no pack"):
        read(tmp_path / "a.pack")


def test_a_person_sees_what_is_other_than_last_time():
    new = dataclasses.replace(PACK, sources={**PACK.sources, "helper.py": b"x = 2\n"}, plan={"rounds": 60, "local": {}})
    lines = difference(PACK, new)
    assert "-x = 1" in lines
    assert "+x = 2" in lines
    assert any('"rounds": 60' in line for line in lines if line.startswith("+"))
    assert not any("import helper" in line for line in lines if line[0] in "+-")
    assert "+import helper" in difference(None, new)
    assert difference(new, new) == []


def test_sources_are_written_where_they_can_be_run(tmp_path):
    recipe = PACK.unpack(tmp_path / "here")
    assert recipe.read_bytes() == b"import helper\n"
    assert (tmp_path / "here" / "helper.py").exists()


def test_the_weights_to_begin_with_are_those_that_were_signed(tmp_path, key):
    path = tmp_path / "a.pack"
    PACK.write(path, key, WEIGHTS)
    assert initial(path, PACK) == WEIGHTS
    rewritten(path, lambda files: files.update({"initial": bytes(8)}))
    assert read(path)[0] == PACK  # which says what they have to be
    with pytest.raises(StateError, match="not those that were signed"):
        initial(path, PACK)
    rewritten(path, lambda files: files.pop("initial"))
    with pytest.raises(StateError, match="no weights to begin with"):
        initial(path, PACK)


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "a\\b", "", ".hidden", "-rf", "a\nb", "a\0b", "x" * 101])
def test_a_name_that_is_no_files_is_no_packs(tmp_path, key, name):
    with pytest.raises(StateError, match="no name of a pack"):
        dataclasses.replace(PACK, name=name)
    made = dataclasses.replace(PACK)
    object.__setattr__(made, "name", name)  # by somebody who has changed the program
    made.write(tmp_path / "a.pack", key, WEIGHTS)
    with pytest.raises(StateError, match="no name of a pack"):
        read(tmp_path / "a.pack")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"x = 1  # \x1b[1A\x1b[2K\n", "not shown as what it is: '\\x1b'"),
        ("x = 1  # \u202e)(live\n".encode(), "not shown as what it is: '\\u202e'"),
        ("x\u200b = 1\n".encode(), "not shown as what it is: '\\u200b'"),
        (b"x = 1\rimport os\n", "not shown as what it is: '\\r'"),
        (b"x = '\xe9'\n", "not in UTF-8"),
        (b"\x7fELF\x00\xff", "not in UTF-8"),
        (b"# coding: utf-7\n# +AAo-import os\n", "not in UTF-8"),
        (b"# coding: unicode_escape\n# \\u000aimport os\n", "not in UTF-8"),
        (b"# coding: nonsense\n", "not in UTF-8"),
    ],
)
def test_a_source_that_a_screen_would_show_as_another_is_refused(tmp_path, key, monkeypatch, source, why):
    pack = dataclasses.replace(PACK, sources={**PACK.sources, "helper.py": source})
    with pytest.raises(StateError, match="nobody would take this pack"):
        pack.write(tmp_path / "a.pack", key, WEIGHTS)
    with monkeypatch.context() as careless:
        careless.setattr(packs, "_check", lambda pack: None)
        pack.write(tmp_path / "a.pack", key, WEIGHTS)
    with pytest.raises(StateError, match="no pack") as raised:
        read(tmp_path / "a.pack")
    assert why in raised.value.found


@pytest.mark.parametrize(
    "source", ["# coding: utf8\nx = 'é'\n", "\ufeffx = 1\n", "x = 1\r\n\ty = 2\r\n", "", "name = '肺炎 שלום'\n"]
)
def test_a_source_in_any_language_is_shown_as_it_is(tmp_path, key, source):
    pack = dataclasses.replace(PACK, sources={**PACK.sources, "helper.py": source.encode()})
    pack.write(tmp_path / "a.pack", key, WEIGHTS)
    assert read(tmp_path / "a.pack")[0] == pack


def test_a_name_of_a_source_hides_nothing_either(tmp_path, key):
    pack = dataclasses.replace(PACK, sources={**PACK.sources, "a\x1b[2K.py": b""})
    with pytest.raises(StateError, match="nobody would take this pack"):
        pack.write(tmp_path / "a.pack", key, WEIGHTS)


def test_the_weights_that_nobody_trains_are_those_that_were_signed(tmp_path, key):
    path, one = tmp_path / "a.pack", dataclasses.replace(PACK, frozen=hashlib.sha256(b"stays").hexdigest())
    one.write(path, key, WEIGHTS, b"stays")
    assert read(path)[0] == one
    assert one.hash != PACK.hash
    assert frozen(path, one) == b"stays"
    assert frozen(path, PACK) == b""
    rewritten(path, lambda files: files.update({"frozen": b"goes"}))
    with pytest.raises(StateError, match="not those that were signed"):
        frozen(path, one)

"""What people at a site say is about the membership that they mean."""

from __future__ import annotations

import pytest

from konvoi.cli import main
from konvoi.errors import StateError
from konvoi.security.invitation import Invitation
from konvoi.sites.limits import Limits
from konvoi.verbs import member, site


@pytest.fixture
def joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def join(name, federation="fed"):
        folder = tmp_path / "memberships" / federation / name
        folder.mkdir(parents=True)
        one = Invitation(federation, "id", name, ("127.0.0.1:1",), "pem", "", 0.0, "", (), "", "terms")
        (folder / "invitation.json").write_text(one.as_text())
        return folder

    return join


def test_who_has_left_and_joined_again_under_another_name_is_found(joined):
    old = joined("old")
    (old / "left").write_bytes(b"")
    assert site.find()[1].name == "old"  # what has left it can be looked at still
    joined("new")
    assert site.find()[1].name == "new"
    assert site.find("fed")[1].name == "new"
    assert site.find("fed/old")[1].name == "old"


def test_two_memberships_are_told_apart_as_the_hint_says(joined):
    joined("a"), joined("b")
    with pytest.raises(StateError, match="which federation") as raised:
        site.find("fed")
    assert (raised.value.found, raised.value.hint) == ("fed/a, fed/b", "--federation NAME/SITE")
    assert site.find("fed/b")[1].name == "b"
    with pytest.raises(StateError, match="which federation") as raised:
        site.find("other")
    assert raised.value.found == "none"


@pytest.mark.parametrize(
    ("hold", "expected"),
    [
        ("first", ("first", "")),
        ("each", ("each", "")),
        ("test -s 'é \"'", ("each", "test -s 'é \"'")),
        (None, ("no", "")),
    ],
)
def test_a_site_says_as_it_joins_what_is_held(joined, monkeypatch, tmp_path, hold, expected):
    folder = joined("a")
    (tmp_path / "a.invite").write_text((folder / "invitation.json").read_text())
    (folder / "limits.toml").write_text('max_rounds = 7  # ours\nhold = "no"\n')
    monkeypatch.setattr(member, "enlist", lambda invitation, recipe, say: folder.parent)
    ran = []
    monkeypatch.setattr(site, "run", lambda *given, **options: ran.append(Limits.read(folder / "limits.toml")))
    words = ["--hold", hold] if hold else []
    assert main(["join", "a.invite", "--data", "x", *words]) == 0
    assert (ran[0].hold, ran[0].hold_command) == expected
    assert ran[0].max_rounds == 7
    assert "# ours" in (folder / "limits.toml").read_text()


@pytest.mark.parametrize("hold", ["frist", "", "no-such-program --x"])
def test_what_cannot_be_held_is_refused_before_anything_runs(joined, monkeypatch, tmp_path, capsys, hold):
    folder = joined("a")
    (tmp_path / "a.invite").write_text((folder / "invitation.json").read_text())
    monkeypatch.setattr(member, "enlist", lambda invitation, recipe, say: folder.parent)
    monkeypatch.setattr(site, "run", lambda *given, **options: pytest.fail("it ran"))
    assert main(["join", "a.invite", "--data", "x", "--hold", hold]) == 2
    assert "nothing can be held like that" in capsys.readouterr().err

import stat

import pytest

from konvoi.errors import StateError
from konvoi.security.identity import Authority, Identity, ask, fingerprint, name_of


def test_an_identity_is_kept_where_nobody_else_may_read_it(tmp_path):
    made = Authority.make("run").issue("hospital-a")
    made.save(tmp_path / "identity")
    assert Identity.load(tmp_path / "identity") == made
    for path in (tmp_path / "identity").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StateError, match="no identity"):
        Identity.load(tmp_path / "elsewhere")


def test_the_authority_gives_the_name_not_the_request():
    authority = Authority.make("run")
    _, request = ask("somebody-else")
    assert name_of(authority.sign(request, "hospital-a")) == "hospital-a"


def test_a_request_that_is_damaged_is_refused():
    authority = Authority.make("run")
    _, request = ask("a")
    lines = request.split(b"\n")
    lines[2] = lines[2][:10] + (b"A" if lines[2][10:11] != b"A" else b"B") + lines[2][11:]
    with pytest.raises(StateError):
        authority.sign(b"\n".join(lines), "a")
    with pytest.raises(StateError):
        authority.sign(b"no request", "a")


def test_fingerprints_differ():
    authority = Authority.make("run")
    assert fingerprint(authority.issue("a").certificate) != fingerprint(authority.issue("a").certificate)

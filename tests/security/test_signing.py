"""How a roster comes to be signed: what a server, a newcomer or an approver could try."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from konvoi.errors import StateError
from konvoi.security.identity import Authority, mark, own_key, public_of, sign_as
from konvoi.security.members import Members, advance, follow, founding, take, who_adds
from konvoi.security.roster import DESK, Roster
from konvoi.security.version import APPROVER, KEEPER, MEMBER, Version, read
from tests.security.test_members import FOUNDED, KEYS, NOW, coming, entry, first, signed

P384, ED25519 = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("key", [P384, ED25519, RSA], ids=["P-384", "Ed25519", "RSA"])
def test_a_key_that_no_roster_can_hold_gets_no_certificate(key):
    """One such newcomer would keep all others from being approved."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dan")])
    algorithm = None if key is ED25519 else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    with pytest.raises(StateError, match="another kind"):
        Authority.make("test").sign(request.public_bytes(serialization.Encoding.PEM), "dan")


def test_a_server_that_cannot_sign_for_a_newcomer_does_not_try_for_ever(tmp_path):
    roster = Roster.open(tmp_path / "roster.jsonl")
    roster.found("id", NOW, needed=1, key=public_of(KEYS[DESK]))
    roster.settle(KEYS[DESK], NOW)
    roster.admit("dan", "print", NOW, "03" + "ab" * 48)
    size = roster.path.stat().st_size
    with pytest.raises(StateError, match="no version of a roster"):
        roster.settle(KEYS[DESK], NOW)
    assert roster.path.stat().st_size == size


def test_whoever_keeps_the_server_approves_alone_or_not_at_all():
    """Else `who_adds` would say of a server that signs that it can add nobody."""
    both = [entry(DESK, KEEPER), entry("ada", APPROVER)]
    with pytest.raises(StateError, match="others approve beside whoever keeps the server"):
        take(Members(), signed(founding("id", 1, both), "ada", DESK))
    kept = follow([signed(founding("id", 1, [entry(DESK, KEEPER)]), DESK)])
    with pytest.raises(StateError, match="others approve beside whoever keeps the server"):
        take(kept, signed(kept.adding(entry("eve", APPROVER)), DESK))
    kept = take(kept, signed(kept.adding(entry("eve")), DESK))
    with pytest.raises(StateError, match="others approve beside whoever keeps the server"):
        take(kept, signed(kept.adding(entry("eve", APPROVER)), DESK))
    assert "can add members" in who_adds(kept)


TEXT = FOUNDED.adding(entry("dan"))


@pytest.mark.parametrize(
    "text",
    [
        TEXT + " ",
        TEXT.replace(": ", ":"),
        TEXT.replace('{"federation"', '{"federation": "other", "federation"'),
        TEXT.replace('"needed": 2', '"needed": 1, "needed": 2'),
        TEXT.replace('"name": "dan"', '"name": "eve", "name": "dan"'),
        TEXT.replace('"dan"', '"\\u0064an"'),
        TEXT.replace("1000000.0", "1e6"),
        json.dumps(json.loads(TEXT), sort_keys=True),
    ],
)
def test_what_is_signed_can_be_written_in_one_way_only(text):
    assert advance(FOUNDED, TEXT).number == 1
    assert text != TEXT
    with pytest.raises(StateError, match="no version of a roster"):
        take(FOUNDED, signed(text, "ada", "bob", "cy"))


def test_signatures_are_of_one_federation_one_version_and_one_predecessor():
    assert {"federation": "id", "number": 1, "before": FOUNDED.head}.items() <= read(TEXT).items()
    signatures = signed(TEXT, "ada", "bob").signatures
    elsewhere = dataclasses.replace(FOUNDED, federation="other").adding(entry("dan"))
    with pytest.raises(StateError, match="changes what its founders have agreed on"):
        take(FOUNDED, Version(elsewhere, signatures))
    after = take(FOUNDED, coming(entry("eve"), "ada", "bob"))
    with pytest.raises(StateError, match="does not follow"):
        take(after, Version(TEXT, signatures))
    with pytest.raises(StateError, match="not signed by enough"):
        take(after, Version(after.adding(entry("dan")), signatures))
    again = follow([first("ada", "bob", "cy", needed=3)])
    with pytest.raises(StateError, match="not signed by enough"):
        take(again, Version(again.adding(entry("dan")), signatures))


def test_signatures_of_two_texts_about_one_name_do_not_add_up(tmp_path):
    roster = Roster.open(tmp_path / "roster.jsonl")
    roster.found("id", NOW, ("ada", "bob"), 2)
    for name in ("ada", "bob", "dan"):
        roster.admit(name, f"print of {name}", NOW, public_of(KEYS[name]))
        if name == "bob":
            text = roster.signing.founding()
            for one in ("ada", "bob"):
                roster.sign(one, text, sign_as(KEYS[one], text.encode()), NOW)
    dan = roster.signing.waiting()["dan"]
    for name, role in (("ada", MEMBER), ("bob", APPROVER)):
        text = roster.signing.members.adding(dataclasses.replace(dan, role=role))
        roster.sign(name, text, sign_as(KEYS[name], text.encode()), NOW)
    assert roster.stands("dan") == "dan is not on the roster yet: 1 of 2 have approved it"


def test_a_members_own_key_is_read_where_no_server_writes(tmp_path):
    assert own_key(tmp_path) == ""
    (tmp_path / "certificate.pem").write_bytes(Authority.make("a server's").certificate)
    (tmp_path / "key.pem").write_bytes(KEYS["dan"])
    assert mark(own_key(tmp_path)) == mark(public_of(KEYS["dan"]))

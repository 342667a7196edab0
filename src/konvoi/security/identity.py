"""Who an island is: a key that is made where it lives and stays there, and a certificate that binds its name to it. The
one file that knows `cryptography`."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from konvoi.errors import StateError

VALID_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)  # clocks that disagree


@dataclass(frozen=True)
class Identity:
    """What a member shows others, in PEM: its certificate, its key, and the authority's certificate that it trusts."""

    name: str
    certificate: bytes
    key: bytes
    authority: bytes

    def save(self, folder: Path) -> None:
        """Into three files that nobody else may read."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file, data in (
            ("key.pem", self.key),
            ("authority.pem", self.authority),
            ("certificate.pem", self.certificate),  # last: where it is, all is
        ):
            _write(folder / file, data)

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Raises: StateError where there is none, or it cannot be read."""
        try:
            certificate, key, authority = (
                (folder / file).read_bytes() for file in ("certificate.pem", "key.pem", "authority.pem")
            )
            return cls(name_of(certificate), certificate, key, authority)
        except (OSError, ValueError) as error:
            raise StateError("there is no identity here", found=f"{folder}: {error}") from None


@dataclass(frozen=True)
class Authority:
    """Who says who is a member of a run: a key and its own certificate."""

    certificate: bytes
    key: bytes

    @classmethod
    def make(cls, run: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"konvoi {run}"[:64])])
        made = (
            _begin(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_may(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(made.public_bytes(serialization.Encoding.PEM), _pem(key))

    def save(self, folder: Path) -> None:
        """Into two files that nobody else may read."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / "certificate.pem", self.certificate)
        _write(folder / "key.pem", self.key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Raises: StateError where there is none."""
        try:
            return cls((folder / "certificate.pem").read_bytes(), (folder / "key.pem").read_bytes())
        except OSError as error:
            raise StateError("there is no authority here", found=f"{folder}: {error.strerror}") from None

    def sign(self, request: bytes, name: str) -> bytes:
        """A certificate for the key in a signing request, for this name whatever the request says.

        Raises: StateError for a request that is damaged, not signed by its own key, or of another kind of key.
        """
        try:
            asked = x509.load_pem_x509_csr(request)
            is_its_own = asked.is_signature_valid
            key = asked.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise StateError("this is no signing request", found=str(error)) from None
        if not is_its_own:
            raise StateError("a signing request was not signed by its own key")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise StateError("a member's key is of another kind than all members'", expected="the curve P-256")
        issuer = x509.load_pem_x509_certificate(self.certificate)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            _begin(_subject(name), issuer.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(_may(digital_signature=True), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(_key(self.key).public_key()), critical=False
            )
            .sign(_key(self.key), hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> Identity:
        """Key and certificate at once, for islands of this very machine."""
        key, request = ask(name)
        return Identity(name, self.sign(request, name), key, self.certificate)


def ask(name: str) -> tuple[bytes, bytes]:
    """A new key, and the request to sign it."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(name)).sign(key, hashes.SHA256())
    return _pem(key), request.public_bytes(serialization.Encoding.PEM)


def name_of(certificate: bytes) -> str:
    """The member's name. Raises: ValueError."""
    found = x509.load_pem_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


def issuer_of(certificate: bytes) -> str:
    """Who has signed a certificate, by name; all that is said of them, where they have none."""
    issuer = x509.load_pem_x509_certificate(certificate).issuer
    found = issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else issuer.rfc4514_string()


def valid_between(certificate: bytes) -> tuple[datetime.datetime, datetime.datetime]:
    found = x509.load_pem_x509_certificate(certificate)
    return found.not_valid_before_utc, found.not_valid_after_utc


def fingerprint(certificate: bytes) -> str:
    """What people compare by eye or by telephone."""
    digest = x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())
    return ":".join(f"{byte:02x}" for byte in digest[:16])


def make_signer(path: Path) -> None:
    """A key to sign packs with, in a file that nobody else may read; it stays where it is made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ed25519.Ed25519PrivateKey.generate()
    kinds = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, key.private_bytes(serialization.Encoding.PEM, *kinds))


def sign(path: Path, data: bytes) -> tuple[str, str]:
    """(public key, signature), both hex. Raises: StateError where there is no such key."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ValueError("another kind of key")
    except (OSError, ValueError) as error:
        raise StateError("there is no key to sign with", found=f"{path}: {error}") from None
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return public.hex(), key.sign(data).hex()


def is_signed(public: str, signature: str, data: bytes) -> bool:
    """Whether the owner of a public key has signed this."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_of(pem: bytes) -> str:
    """The public key of a certificate, or of a private key, hex: a point in its compressed form. Raises: ValueError."""
    if b"CERTIFICATE" in pem:
        key = x509.load_pem_x509_certificate(pem).public_key()
    else:
        key = _key(pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("another kind of key")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint).hex()


def own_key(folder: Path) -> str:
    """A member's own, public; "" before it has joined. Of the key alone: the certificate comes from a server."""
    path = folder / "key.pem"
    return public_of(path.read_bytes()) if path.exists() else ""


def mark(data: str) -> str:
    """What people compare by eye or by telephone: of a member's public key, or of what founders sign.

    >>> mark("03ab")
    'c9:4c:7e:81:69:9a:18:56:29:e9:fa:ec:79:4a:43:19'
    """
    digest = hashlib.sha256(data.encode()).hexdigest()[:32]
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))


def sign_as(key: bytes, data: bytes) -> str:
    """The signature of a member's own key, in PEM; hex."""
    return _key(key).sign(data, ec.ECDSA(hashes.SHA256())).hex()


@functools.lru_cache(4096)  # a roster is followed from its first version on, again and again
def is_by(public: str, signature: str, data: bytes) -> bool:
    """Whether the member with this public key has signed this."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | object) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _may(**uses: bool) -> x509.KeyUsage:
    """RFC 5280 asks for it, and Python 3.13 refuses who has none."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # type: ignore[assignment]
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names})


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)

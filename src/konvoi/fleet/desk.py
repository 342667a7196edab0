"""The desk of a federation: where an invited machine gets its certificate, and members find each other.

JSON over HTTPS on one port, by the standard library. A stranger may only enrol, with a token; whoever shows a member's
certificate may ask where the others are. No tensor, no code and no vote passes here: without the desk those who have
met train on, and only nobody new can come.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from konvoi.errors import FleetError, KonvoiError
from konvoi.fleet.door import Door
from konvoi.security.identity import Authority, fingerprint, mark, name_of, public_of
from konvoi.security.members import who_adds
from konvoi.security.roster import DESK, Roster
from konvoi.security.version import NAME

AWAY_S = 15.0  # without a word


class Frames(Protocol):
    """Who answers a site's frames."""

    def largest(self) -> int:
        """Bytes of a frame."""

    def answer(self, member: str, frame: bytes) -> bytes:
        """Raises: KonvoiError, which the member is told."""


class Desk:
    """Serves in threads of its own. Use with `with`.

    `terms` is what every member must have alike; `num_first`: with so many members present training begins, those
    `needed` among them.
    """

    def __init__(
        self,
        folder: Path,
        roster: Roster,
        *,
        terms: str,
        num_first: int,
        needed: tuple[str, ...] = (),
        address: tuple[str, int] = ("0.0.0.0", 0),
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
        frames: Frames | None = None,
    ) -> None:
        self.frames = frames
        self.folder, self.roster, self.terms, self.num_first = folder, roster, terms, num_first
        self.needed, self.say, self.clock = needed, say, clock
        self.authority = Authority.load(folder / "authority")
        self.present: dict[str, dict[str, Any]] = {}  # by member: what it has said, from where, and when
        self.refused: dict[str, int] = {}  # by reason
        self._lock = threading.Lock()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=self.authority.certificate.decode())
        context.load_cert_chain(folder / DESK / "certificate.pem", folder / DESK / "key.pem")
        self._server = Door(address, self, context)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="konvoi-desk", daemon=True)

    def __enter__(self) -> Desk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- what is asked ------------------------------------------------------------------------------------------------

    def answer(self, path: str, body: Mapping[str, Any], certificate: bytes | None, host: str) -> dict[str, Any]:
        """Raises: FleetError for whoever may not, or asks for nothing that there is."""
        with self._lock:
            try:
                self.roster.refresh()
                if path == "/enrol":
                    return self._enrol(body)
                name = self._member(certificate)
                if path == "/meet":
                    return self._meet(name, body, host)
                if path == "/leave":
                    self.roster.leave(name, self.clock())
                    self.present.pop(name, None)
                    self.say(f"{name} has left")
                    return {}
                self._check_standing(path, name)
                if path == "/status":
                    return {"status": self.status()}
                if path == "/roster" and self.roster.signing is not None:
                    return dict(self.roster.signing.told(self.roster.revoked))
                if path == "/sign":
                    self.roster.sign(name, _text(body, "text"), _text(body, "signature"), self.clock())
                    return {}
                raise FleetError("there is no such question", found=path[:40])
            except KonvoiError as error:
                self.refused[error.message] = self.refused.get(error.message, 0) + 1
                raise

    def answer_frame(self, frame: Callable[[int], bytes], certificate: bytes | None) -> bytes:
        """`frame` reads it, of so many bytes at most, once it is known who sends it.

        Raises: KonvoiError for whoever may not, and with what is wrong.
        """
        try:
            if self.frames is None:
                raise FleetError("this federation has no runs over data that stay where they are")
            with self._lock:
                self.roster.refresh()
                self._check_standing("/frame", name := self._member(certificate))
            return self.frames.answer(name, frame(self.frames.largest()))
        except KonvoiError as error:
            with self._lock:
                self.refused[error.message] = self.refused.get(error.message, 0) + 1
            raise

    def _check_standing(self, path: str, name: str) -> None:
        """Who waits to be approved is told nothing of the others; founders have to see each other before.

        Raises: FleetError with what it waits for.
        """
        signing = self.roster.signing
        if path != "/frame" and signing is not None and not signing.versions and name in signing.founders:
            return
        if why := self.roster.stands(name):
            raise FleetError(why, hint="konvoi federation approve-member, by each of those who approve")

    def _enrol(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name, token, request = (_text(body, key) for key in ("name", "token", "request"))
        self.roster.accept(name, token, self.clock())
        self._check_terms(body)
        certificate = self.authority.sign(request.encode(), name)
        self.roster.admit(name, fingerprint(certificate), self.clock(), key := public_of(certificate))
        self.roster.settle(self.authority.key, self.clock())
        told = f"certificate is {fingerprint(certificate)}" if self.roster.signing is None else f"key is {mark(key)}"
        self.say("; ".join(filter(None, (f"{name} has joined; its {told}", self.roster.stands(name)))))
        return {"certificate": certificate.decode()}

    def _check_terms(self, body: Mapping[str, Any]) -> None:
        if _text(body, "terms") != self.terms:
            hint = "the same recipe file, byte for byte, and the same version of konvoi"
            raise FleetError("another recipe, plan or version than the federation's", hint=hint)

    def _member(self, certificate: bytes | None) -> str:
        if certificate is None:
            raise FleetError("only members may ask this", hint="konvoi join INVITATION")
        pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
        name = name_of(pem)
        if not self.roster.is_member(name, fingerprint(pem)):
            raise FleetError("this certificate is no member's any more", found=name)
        return name

    def _meet(self, name: str, body: Mapping[str, Any], host: str) -> dict[str, Any]:
        self._check_terms(body)
        address, facts = body.get("address", ""), body.get("facts", {})
        if not isinstance(address, str) or not isinstance(facts, dict) or len(address) > 200:
            raise FleetError("an address is text, and facts are by name")
        if address.startswith(":"):  # as it is seen from here
            address = f"[{host}]{address}" if ":" in host else host + address
        self.present[name] = {"address": address, "seen": self.clock(), "facts": _known(facts)}
        members = {one: told for one, told in self.present.items() if one in self.roster.members}
        here = [one for one, told in members.items() if self.clock() - told["seen"] < AWAY_S]
        if not self.roster.begun and len(here) >= self.num_first and {*self.needed} <= {*here}:
            first = [*self.needed, *(one for one in here if one not in self.needed)]
            self.roster.begin(first[: self.num_first], self.clock())
            self.say(f"training begins with {', '.join(self.roster.begun)}")
        return {
            "begun": list(self.roster.begun),
            "here": sorted(here),
            "num_first": self.num_first,
            "addresses": {one: told["address"] for one, told in members.items() if told["address"]},
            "done": [one for one, told in members.items() if told["facts"].get("done")],
            "revoked": sorted(self.roster.revoked),
            "reforms": list(self.roster.reforms),
        }

    def status(self) -> dict[str, Any]:
        """Of every member and invitation, for people."""
        now = self.clock()
        members = {
            name: {
                **((told := self.present.get(name, {})).get("facts", {})),
                **({"address": told["address"], "seen_s": round(now - told["seen"], 1)} if told else {}),
                "fingerprint": own,
                "left": name in self.roster.left,
                **({"pending": why} if (why := self.roster.stands(name)) else {}),
            }
            for name, own in sorted(self.roster.members.items())
        }
        hours = {name: round((one.expires - now) / 3600, 1) for name, one in sorted(self.roster.invited.items())}
        return {
            "num_first": self.num_first,
            "begun": list(self.roster.begun),
            "members": members,
            "invited": {name: {"expires_in_h": left} for name, left in hours.items()},
            "revoked": sorted(self.roster.revoked),
            "reforms": list(self.roster.reforms),
            "refused": dict(self.refused),
            **({} if self.roster.signing is None else {"roster": who_adds(self.roster.signing.members)}),
        }


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a member says of itself, what has a meaning here; it is shown to people."""
    kinds = {"round": int, "step": int, "refused": int, "stands": bool, "done": bool}
    found = {name: value for name, kind in kinds.items() if type(value := facts.get(name)) is kind}
    for name in ("samples_per_s", "waits"):
        if isinstance(facts.get(name), (int, float)):
            found[name] = float(facts[name])
    reaches = facts.get("reaches")
    if isinstance(reaches, list):
        found["reaches"] = [one for one in reaches[:100] if isinstance(one, str) and NAME.fullmatch(one)]
    return found


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or len(value) > 20_000:
        raise FleetError("a request lacks something", found=key)
    return value

"""What a site fetches from the server: agreed weights and packs, of a size that is known before, or below a cap."""

from __future__ import annotations

import hashlib
from pathlib import Path

from konvoi.errors import MessageRefused, StateError
from konvoi.security import pack as packs
from konvoi.security.leaving import MOST
from konvoi.security.pack import Pack
from konvoi.sites.gate import Gate
from konvoi.sites.house import House
from konvoi.sites.protocol import PIECE, PROTOCOL, Started, size_of_weights

MOST_ASKED = 1 << 24  # bytes of what a survey asks
MOST_OF_A_PACK = MOST + packs.LARGEST  # weights fit into a frame
MOST_WAITING = 16  # packs that nobody here has looked at yet


def weights(gate: Gate, base: str, folder: Path, run: str, pack: Pack) -> Path:
    """The file of these weights, in this folder, which has no others then.

    Raises: as `Gate.send`; MessageRefused for anything else than what was asked for.
    """
    path, part = folder / base, folder / f"{base}.part"
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old != part:
            old.unlink()
    is_survey = pack.kind == "survey"
    size = MOST_ASKED if is_survey else size_of_weights(pack.leaves)
    _fetch(gate, base, part, most=size, run=run, pack=pack.hash)
    with part.open("rb") as file:
        is_right = hashlib.file_digest(file, "sha256").hexdigest() == base
    if not is_right or (not is_survey and part.stat().st_size != size):
        part.unlink()
        raise MessageRefused("the server's weights are not what was asked for", found=base[:12])
    part.replace(path)
    return path


def pack(gate: Gate, house: House, run: Started) -> None:
    """Of this run, into the house, to be looked at.

    Raises: as `Gate.send`; MessageRefused where too many wait, and for what is no pack; StateError for another pack.
    """
    waiting = house.waiting()
    if len(waiting) >= MOST_WAITING:
        raise MessageRefused(f"the pack of {run.id} is not fetched: too many wait for a person", found=len(waiting))
    part = house.folder / "packs" / f"{run.pack}.part"
    for old in part.parent.glob("*.part"):
        if old != part:
            old.unlink()
    _fetch(gate, run.pack, part, most=MOST_OF_A_PACK, run=run.id)
    try:
        found, _ = packs.read(part)
        if found.hash == run.pack:
            house.take_in(part)
    except StateError as error:
        raise MessageRefused(f"the server's pack of {run.id} cannot be read", found=error.message) from None
    finally:
        part.unlink()
    if found.hash != run.pack:
        raise StateError("the server's pack is not the one of this run", found=found.hash, expected=run.pack)


def _fetch(gate: Gate, what: str, into: Path, *, most: int, run: str = "", pack: str = "") -> None:
    """In pieces, going on with what is there."""
    with into.open("ab") as file:
        while file.tell() <= most:
            values = {"what": bytes.fromhex(what), "start": file.tell()}
            piece = gate.send(PROTOCOL, "get", values, run=run, pack=pack)
            file.write(piece)
            if len(piece) < PIECE:
                break
        size = file.tell()
    if size > most:
        into.unlink()
        raise MessageRefused("the server sends more than there can be", found=what[:12], expected=f"{most:,} bytes")

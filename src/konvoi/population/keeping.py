"""What simulated clients keep for themselves: a row of numbers each, in a file that grows with those who were asked.

A run goes on from a checkpoint, and clients have to go back with it. So what a row was before it was written is noted
in a file that begins with each checkpoint, and those files are undone, the newest first.
"""

from __future__ import annotations

import fnmatch
import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from konvoi.errors import PlanError
from konvoi.values import base_name

HEAD = struct.Struct("<QQ")  # round, client


class Rows:
    """(clients, width) of float32, zeros at first. Several processes may use one file, each rows of its own.

    Room is taken on disk for rows that were written, and for nobody else's.
    """

    def __init__(self, folder: Path, name: str, clients: int, width: int, *, worker: int = 0, step: int = 0) -> None:
        self.folder, self.name, self.worker, self.width = folder, name, worker, width
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.float32"
        with open(path, "ab") as file:
            file.truncate(clients * width * 4)
        self.rows = np.memmap(path, np.float32, "r+", shape=(clients, width))
        self._undo = self._notes(step)

    def _path(self, step: int) -> Path:
        return self.folder / f"{self.name}.before-{step:08d}-{self.worker}"

    def _notes(self, step: int) -> io.FileIO:
        """Unbuffered: a note is there before its row is written, should this process be killed."""
        return io.FileIO(self._path(step), "a")

    def read(self, clients: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.rows[list(clients)])

    def write(self, round: int, clients: Sequence[int], values: Tensor) -> None:
        for client, new in zip(clients, values.cpu().numpy(), strict=True):
            self._undo.write(HEAD.pack(round, client) + self.rows[client].tobytes())
            self.rows[client] = new

    def begin(self, step: int, oldest: int) -> None:
        """A checkpoint of this step is taken; none older than `oldest` will be gone back to."""
        self._undo.close()
        self._undo = self._notes(step)
        for path in self.folder.glob(f"{self.name}.before-*-{self.worker}"):
            if int(path.name.split("-")[1]) < oldest:
                path.unlink()

    def close(self) -> None:
        self.rows.flush()
        self._undo.close()


def go_back(folder: Path, name: str, clients: int, width: int, step: int) -> None:
    """Make the rows what they were at the checkpoint of this step (0: at the beginning). One process calls it, before
    any opens them."""
    path, length = folder / f"{name}.float32", HEAD.size + 4 * width
    if not path.exists():
        return
    rows = np.memmap(path, np.float32, "r+", shape=(clients, width))
    notes: list[tuple[int, int, bytes]] = []
    files = [one for one in folder.glob(f"{name}.before-*") if int(one.name.split("-")[1]) >= step]
    for file in files:
        data = file.read_bytes()
        for start in range(0, len(data) - length + 1, length):
            round, client = HEAD.unpack_from(data, start)
            notes.append((round, client, data[start + HEAD.size : start + length]))
    for _, client, before in sorted(notes, key=lambda note: -note[0]):
        rows[client] = np.frombuffer(before, np.float32)
    rows.flush()
    for file in files:
        file.unlink()


def personal(names: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Which parameters stay at each client. Raises: PlanError for a pattern that names none, or where none is left."""
    found = [False] * len(names)
    for pattern in patterns:
        here = [any(fnmatch.fnmatch(one, pattern) for one in (name, base_name(name))) for name in names]
        if not any(here):
            raise PlanError("personal names no trained parameter", found=pattern, expected=f"e.g. {names[0]}")
        found = [a or b for a, b in zip(found, here, strict=True)]
    if all(found):
        raise PlanError("nothing is left to agree on", found=f"personal={tuple(patterns)}")
    return found


def path_of_finetuned(run: Path, client: int) -> Path:
    return run / "clients" / "finetuned" / f"{client}.safetensors"


def keep_finetuned(run: Path, client: int, weights: Mapping[str, Tensor]) -> None:
    """What a client ends with, all that is trained, by name."""
    from konvoi.state import safetensors

    path = path_of_finetuned(run, client)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(path, weights)

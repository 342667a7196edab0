"""Islands that one launcher has started together, for programs that keep their own loops."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import tempfile
import uuid
import warnings
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from konvoi.errors import JobError
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.meeting import AtStore
from konvoi.observe.events import Event, Warned
from konvoi.plan.convoy import Plan
from konvoi.plan.split.parts import Parts
from konvoi.plan.sync.messages import Decision
from konvoi.security.identity import Authority, Identity
from konvoi.task import Membership
from konvoi.team import Team

T = TypeVar("T")
CHUNK = 1 << 20  # bytes of weights in one value of the store


class Company:
    """Use with `with`, inside the island. The launcher's store, which its workers trust, holds what they need in order
    to meet: addresses, each island's key, and the first one's weights."""

    def __init__(self, plan: Plan, place: Place, master: str) -> None:
        """`place`: of this process among all that were launched."""
        each = plan.island.num_workers
        self.plan, self.number, self.islands = plan, place.worker // each, place.num_workers // each
        self._store, _, _ = next(dist.rendezvous("env://"))
        inside = dist.PrefixStore(f"konvoi/inside/{self.number}", self._store)
        self.place = replace(place, worker=place.worker % each, num_workers=each, store=inside)
        self._all = dist.PrefixStore("konvoi/convoy", self._store)
        self._master, self._folder = master, Path()
        self._team: Team | None = None

    @property
    def _is_first(self) -> bool:
        return self.number == 0 and self.place.worker == 0

    def share(self, name: str, value: T) -> T:
        """The first worker's of the first island, to all. A value that JSON has."""
        if self._is_first:
            self._all.set(name, json.dumps(value))
        told: T = json.loads(self._all.get(name))
        return told

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """The first island's, to the first worker of each other."""
        tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        if self._is_first:
            buffer = io.BytesIO()
            torch.save([tensor.cpu() for tensor in tensors], buffer)
            chunks = [buffer.getvalue()[start : start + CHUNK] for start in range(0, buffer.tell(), CHUNK)]
            for number, chunk in enumerate(chunks):
                self._all.set(f"weights/{number}", chunk)  # type: ignore[arg-type]  # bytes are as good
            self._all.set("weights", str(len(chunks)))
        elif self.place.worker == 0:
            data = b"".join(self._all.get(f"weights/{number}") for number in range(int(self._all.get("weights"))))
            for mine, first in zip(tensors, torch.load(io.BytesIO(data), weights_only=True), strict=True):
                mine.copy_(first)
        self._have_read("weights")

    def _have_read(self, name: str) -> None:
        """The last to come clears up: the store is in the launcher's memory."""
        if self.place.worker == 0 and self._all.add(f"{name} read", 1) == self.islands:
            for number in range(int(self._all.get(name))):
                self._all.delete_key(f"{name}/{number}")

    def begin(self, island: LiveIsland, parts: Parts) -> None:
        """Meet the other islands. Raises: JobError at the second time."""
        if self._team is not None:
            raise JobError("an island of a convoy prepares one model", hint="one `with kv.join(...)` for each")
        names = tuple(f"island-{number}" for number in range(self.islands))
        run = self.share("run", uuid.uuid4().hex)
        if self._is_first:
            authority = Authority.make(run)
            for name in names:
                one = authority.issue(name)
                files = [one.certificate.decode(), one.key.decode(), one.authority.decode()]
                self._all.set(f"identity/{name}", json.dumps(files))
        name = names[self.number]
        meeting = None
        host = _address(self._master)
        if self.place.worker == 0:
            certificate, key, authority_ = (text.encode() for text in json.loads(self._all.get(f"identity/{name}")))
            self._all.delete_key(f"identity/{name}")
            Identity(name, certificate, key, authority_).save(self._folder / name)
            meeting = AtStore(self._all, name, host)
        convoy = self.plan.convoy
        # The program reads its own batches: what is leased is steps.
        first = Decision.first(names, convoy.voters(names), convoy.steps_per_round)
        given = Membership(name, convoy, first, 1, self.islands, self.islands, run, self._folder, address=host)
        self._team = Team(given, island, parts, _warn, meeting)

    def after_step(self, weight: float) -> None:
        """Count a step, and wait until the next may be taken. Raises: SystemExit after a stop that was asked for."""
        assert self._team is not None
        self._team.after_step(weight)
        if self._team.ready().is_over:
            raise SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> Company:
        self._folder = Path(tempfile.mkdtemp(prefix="konvoi-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        is_meant = kind is None or kind is SystemExit  # the others are told that this island leaves
        try:
            if self._team is not None:
                if is_meant:
                    self._team.finish()
                self._team.__exit__(None if is_meant else kind, error, at)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _warn(event: Event) -> None:
    if isinstance(event, Warned):
        warnings.warn(event.message, stacklevel=3)


def _address(master: str) -> str:
    """Of this host, as the others reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # no packet is sent
        host: str = probe.getsockname()[0]
        return host

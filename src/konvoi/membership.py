"""An island in a convoy over the network: it meets the others, reads what is leased to it, agrees, and leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from torch import Tensor

from konvoi.convoy import LiveConvoy
from konvoi.fleet.wire.grpc import Peers
from konvoi.fleet.worker import Place
from konvoi.job.data.loader import Leased
from konvoi.observe.events import Emit, Warned
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import CHUNK
from konvoi.plan.sync import events as ev
from konvoi.plan.sync import frames
from konvoi.security.identity import Identity
from konvoi.state.journal import Journal
from konvoi.task import Task
from konvoi.values import MicroBatch

LEAVE_S = 5.0  # where a stop was asked for
LOOK_S = 0.1


class Member:
    """Use with `with`."""

    def __init__(self, task: Task, parameters: Mapping[str, Tensor], place: Place, emit: Emit) -> None:
        """`parameters`: all of the model's; those that are trained are agreed on."""
        assert task.membership is not None
        self.task, self.given, self.is_over = task, task.membership, place.stop_requested
        given = self.given
        folder = given.folder / given.name
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        anchor = Anchor(trained, given.plan, given.num_parts)
        self.wire = Peers(
            Identity.load(folder),
            hello=given.run.encode(),
            encode=frames.encode,
            decode=frames.decode,
            address=f"{given.address}:0",
            largest=max(CHUNK, anchor.largest_part()),
            on_refused=lambda peer, why: emit(Warned(message=f"{peer or 'somebody unknown'} was refused: {why}")),
        )
        _say(folder / "address", f"{given.address}:{self.wire.port}")
        rules = given.plan.rules(given.num_parts, given.batch * given.plan.steps_per_round)
        self.live = LiveConvoy(
            given.name, given.plan, rules, given.first, anchor, self.wire, Journal(folder / "journal")
        )
        before = [name for name in given.first.members if name < given.name]  # of two islands one opens the lanes
        self.wire.dial({name: partial(_heard, given.folder / name / "address") for name in before})

    def batches(self) -> Iterator[list[MicroBatch]]:
        """What is leased to this island, a step's at a time; it waits where the others have to agree first."""
        job = self.task.prepared.job
        samples = Leased(self.task.prepared.splits.train, seed=job.seed, collate=job.collate)
        while not self.is_over():
            ranges = self.live.positions(self.given.batch) if self.live.wait(LOOK_S) else ()
            if _size(ranges) == self.given.batch:
                yield samples.read(ranges)
            else:
                time.sleep(LOOK_S / 5)  # for a decision, which leases more

    def after_step(self, weight: float) -> None:
        self.live.after_step(self.given.batch, weight)

    def finish(self) -> None:
        """Wait for the agreement that is under way."""
        while not self.live.is_settled() and not self.is_over():
            time.sleep(LOOK_S / 5)

    def __enter__(self) -> Member:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._leave()
        self.wire.close()

    def _leave(self) -> None:
        """The others have to agree to it; until then they may need this island's vote, and what it holds."""
        folder, names = self.given.folder, self.given.first.members
        (folder / self.given.name / "done").touch()
        self.live.happen(ev.Leaving())
        until = time.monotonic() + LEAVE_S
        while not self.live.is_out and not all((folder / name / "done").exists() for name in names):
            if self.is_over() and time.monotonic() > until:
                return
            time.sleep(LOOK_S / 5)


def _say(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _heard(path: Path) -> str | None:
    """Where an island is, if it has said so already; one that comes back says it anew."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _size(ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(stop - start for start, stop in ranges)

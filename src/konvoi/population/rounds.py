"""The rounds of a simulated federation: a cohort's work, the mean of its moves, and the outer step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from konvoi.fleet.simulated import Simulated
from konvoi.fleet.worker import Place
from konvoi.job.data.positions import Ints
from konvoi.job.job import Job
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.outer import OuterStep
from konvoi.population import cohorts
from konvoi.population.buffered import Buffered
from konvoi.population.choosing import Sizes, Trainer
from konvoi.population.keeping import Rows, go_back, personal
from konvoi.population.work import Way, Work


@dataclass(frozen=True)
class Done:
    """A round, as all workers know it."""

    round: int
    asked: int
    counted: int
    refused: int  # updates that were not finite
    loss: float  # mean over what the clients trained on
    weight: float
    move: float  # norm of the mean move
    seconds: float  # of the simulated clock


@dataclass(frozen=True)
class Group:
    """Clients of a round that begin with the same weights."""

    since: int  # the round behind which the weights were agreed
    clients: tuple[int, ...]
    shares: tuple[float, ...]  # of the mean
    damped: float = 1.0


@dataclass(frozen=True)
class Sums:
    """Over a round's clients, in float64, so that it hardly matters in which order they come."""

    moves: Tensor
    controls: Tensor | None
    counts: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))
    """Losses, what they run over, clients that counted, those that were refused, and the share of the mean."""


class Rounds:
    """Every worker makes the same calls, trains its share of each cohort, and holds all that is agreed."""

    def __init__(
        self,
        job: Job,
        plan: Convoy,
        fleet: Simulated,
        indices: Sequence[Ints],
        parameters: Mapping[str, Tensor],
        place: Place,
        folder: Path,
        start: int = 0,
    ) -> None:
        """`start`: the round behind which all this goes on; what clients keep goes back to what it was then."""
        assert plan.local is not None
        self.job, self.plan, self.local, self.fleet, self.place = job, plan, plan.local, fleet, place
        self.indices = indices
        self.sizes = [self.local.sizes(len(one), job.global_batch) for one in indices]
        self.names = list(parameters)
        self.parameters = [p.detach() for p in parameters.values()]
        self.personal = personal(self.names, self.local.personal)
        self.shared = [not is_personal for is_personal in self.personal]
        self.agreed = _flat(self._of(self.parameters, self.shared))
        self.at_first = [p.clone() for p in self._of(self.parameters, self.personal)]
        self.outer = OuterStep(plan, self.agreed)
        self.control = torch.zeros_like(self.agreed) if self.local.controls else None
        self.round = start
        steps = [*map(len, self.sizes)]
        self.buffered = Buffered(plan, fleet, steps, self.agreed, start) if plan.at_once else None
        count, numbers = len(indices), sum(p.numel() for p in self._of(self.parameters, self.personal))
        widths = {"controls": self.agreed.numel() * self.local.controls, "personal": numbers}
        own = {name: width for name, width in widths.items() if width}
        for name, width in own.items():
            if place.worker == 0:
                go_back(folder, name, count, width, start)
        if own and place.num_workers > 1:
            dist.barrier()
        self.rows = {
            name: Rows(folder, name, count, width, worker=place.worker, step=start) for name, width in own.items()
        }

    @staticmethod
    def _of(tensors: Sequence[Tensor], which: Sequence[bool]) -> list[Tensor]:
        return list(itertools.compress(tensors, which))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the model's weights. Shares memory."""
        found = {f"outer.{name}": tensor for name, tensor in self.outer.state.items()}
        found |= {"control": self.control} if self.control is not None else {}
        return found | (self.buffered.state() if self.buffered else {})

    @torch.no_grad()
    def load(self, client: int | None = None) -> None:
        """The module gets what is agreed, and of personal weights the client's, or those that all begin with."""
        begin = self._begin(() if client is None else (client,), self.agreed)
        torch._foreach_copy_(self.parameters, [one.view_as(p) for one, p in zip(begin, self.parameters, strict=True)])

    @torch.no_grad()
    def take_over(self) -> None:
        """What the module has now is what was agreed, as a checkpoint was read into it."""
        self.agreed.copy_(_flat(self._of(self.parameters, self.shared)))
        for mine, p in zip(self.at_first, self._of(self.parameters, self.personal), strict=True):
            mine.copy_(p)
        if self.buffered:
            self.buffered.agree(self.round, self.agreed)

    def begin(self, step: int, oldest: int) -> None:
        """A checkpoint of this step is taken; none older than `oldest` will be gone back to."""
        for rows in self.rows.values():
            rows.begin(step, oldest)

    # -- a round ---------------------------------------------------------------------------------------------------

    def next(self, trainer: Trainer) -> Done:
        self.round += 1
        groups, asked, seconds = self._groups()
        sums = Sums(
            torch.zeros_like(self.agreed, dtype=torch.float64),
            torch.zeros_like(self.agreed, dtype=torch.float64) if self.control is not None else None,
        )
        for group in groups:
            anchor = self.buffered.versions[group.since] if self.buffered else self.agreed
            share = dict(zip(group.clients, group.shares, strict=True))
            for clients in self._mine(group.clients, self.sizes, trainer):
                shares = [share[client] for client in clients]
                self._train(trainer.way(len(clients)), group, clients, shares, anchor, sums)
        for tensor in (sums.moves, sums.controls, sums.counts):
            if tensor is not None and self.place.num_workers > 1:
                dist.all_reduce(tensor)
        losses, weight, counted, refused, share = sums.counts.tolist()
        if counted:
            sums.moves.div_(share)
        self._agree(sums, counted)
        mean = losses / weight if weight else float("nan")
        return Done(self.round, asked, round(counted), round(refused), mean, weight, sums.moves.norm().item(), seconds)

    def _groups(self) -> tuple[list[Group], int, float]:
        """Whose work makes this round, with its share of the mean; how many were asked; how long it took."""
        if self.buffered:
            here, seconds = self.buffered.next()
            by = {since: [one.client for one in here if one.since == since] for since in {a.since for a in here}}
            among = [one.client for one in here]
            groups = [
                Group(since, tuple(clients), self._shares(clients, among), (self.round - since) ** -self.plan.damping)
                for since, clients in sorted(by.items())
            ]
            return groups, len(here), seconds
        cohort = cohorts.of_round(self.round, self.plan, self.fleet, [*map(len, self.sizes)])
        counted = cohort.counted
        groups = [Group(self.round - 1, counted, self._shares(counted, counted))] if counted else []
        return groups, len(cohort.asked), cohort.seconds

    def _shares(self, clients: Sequence[int], among: Sequence[int]) -> tuple[float, ...]:
        def weigh(client: int) -> float:
            return 1.0 if self.local.equal else float(len(self.indices[client]))

        total = sum(map(weigh, among))
        return tuple(weigh(client) / total for client in clients)

    @torch.no_grad()
    def tuned(self, clients: Sequence[int], trainer: Trainer) -> Iterator[int]:
        """Each of this worker's part of these clients, when the module has what is agreed after `finetune` epochs on
        the client's own data. It is kept nowhere."""
        local = replace(self.local, epochs=self.local.finetune, steps=0)
        sizes = {client: local.sizes(len(self.indices[client]), self.job.global_batch) for client in clients}
        rate = functools.partial(self.job.schedule.factor, num_steps=self.plan.rounds)
        highest = max(range(1, self.plan.rounds + 1), key=rate)
        for piece in self._mine(clients, sizes, trainer):
            weights = self._copies(piece, self.agreed)
            batches = self._batches(piece, sizes, self.round + 1)
            with torch.enable_grad():
                trainer.way(len(piece)).train(Work(highest, weights, batches))
            for number, client in enumerate(piece):
                torch._foreach_copy_(self.parameters, [stack[number] for stack in weights])
                yield client

    def _mine(
        self, clients: Sequence[int], sizes: Mapping[int, Sizes] | Sequence[Sizes], trainer: Trainer
    ) -> Iterator[list[int]]:
        """This worker's part of them, in the pieces that are trained at once."""
        for worker, piece in trainer.pieces(clients, sizes, self.place.num_workers):
            if worker == self.place.worker:
                yield piece

    def _copies(self, clients: Sequence[int], anchor: Tensor) -> list[Tensor]:
        """What each of them begins with, by parameter (clients, ...)."""
        begin, count = self._begin(clients, anchor), len(clients)
        return [tensor.expand(count, *p.shape).clone() for tensor, p in zip(begin, self.parameters, strict=True)]

    def _batches(
        self, clients: Sequence[int], sizes: Mapping[int, Sizes] | Sequence[Sizes], round: int
    ) -> list[list[Ints]]:
        seed = self.job.seed
        return [cohorts.order(seed, client, round, self.indices[client], sizes[client]) for client in clients]

    @torch.no_grad()
    def _train(
        self,
        way: Way,
        group: Group,
        clients: list[int],
        shares: list[float],
        anchor: Tensor,
        sums: Sums,
    ) -> None:
        count, weights = len(clients), self._copies(clients, anchor)
        own = self.rows["controls"].read(clients) if sums.controls is not None else None
        corrections = None
        if own is not None:
            assert self.control is not None
            corrections = self._stacks(self.control - own.to(self.control))
        batches = self._batches(clients, self.sizes, self.round)
        with torch.enable_grad():
            found = way.train(Work(group.since + 1, weights, batches, self.local.proximal, corrections))
        present = torch.cat([one.reshape(count, -1) for one in self._of(weights, self.shared)], 1)
        moves = anchor - present
        good = moves.isfinite().all(1).cpu() & found.losses.isfinite()
        moves[~good] = 0.0
        factors = torch.tensor(shares, dtype=torch.float64) * good
        sums.moves.add_((factors.to(moves) @ moves).double(), alpha=group.damped)
        counts = (found.losses[good].sum(), found.weights[good].sum(), good.sum(), (~good).sum(), factors.sum())
        sums.counts.add_(torch.tensor(counts, dtype=torch.float64))
        if self.personal.count(True):
            mine = torch.cat([one.reshape(count, -1) for one in self._of(weights, self.personal)], 1)
            kept = [client for client, is_good in zip(clients, good.tolist(), strict=True) if is_good]
            self.rows["personal"].write(self.round, kept, mine[good])
        if own is not None:
            assert self.control is not None
            assert sums.controls is not None
            change = moves / found.rates.to(moves)[:, None] - self.control
            change[~good] = 0.0
            self.rows["controls"].write(self.round, clients, own + change.cpu())
            sums.controls.add_(change.sum(0, dtype=torch.float64))

    def _begin(self, clients: Sequence[int], anchor: Tensor) -> list[Tensor]:
        """What each parameter begins with: agreed, or a client's own, which has the clients as its first dim."""
        shared = iter(_views(anchor, self._of(self.parameters, self.shared)))
        own = iter(self.at_first)
        if self.at_first and clients:
            rows = self.rows["personal"].read(clients).to(anchor)
            rows[~rows.any(1)] = _flat(self.at_first)  # of those who come for the first time: nobody trains to zeros
            sizes = [p.numel() for p in self.at_first]
            own = iter([r.view(-1, *p.shape) for r, p in zip(rows.split(sizes, 1), self.at_first, strict=True)])
        return [next(own) if is_personal else next(shared) for is_personal in self.personal]

    def _stacks(self, rows: Tensor) -> list[Tensor]:
        """(clients, numbers) as one stack for each parameter; zeros for personal ones."""
        shared = self._of(self.parameters, self.shared)
        pieces = iter(rows.split([p.numel() for p in shared], 1))
        return [
            torch.zeros(len(rows), *p.shape, dtype=p.dtype, device=p.device)
            if is_personal
            else next(pieces).reshape(len(rows), *p.shape)
            for p, is_personal in zip(self.parameters, self.personal, strict=True)
        ]

    def _agree(self, sums: Sums, counted: float) -> None:
        if counted:
            self.outer.take(self.agreed, sums.moves.to(self.agreed))
        if sums.controls is not None:
            assert self.control is not None
            self.control += (sums.controls / len(self.indices)).to(self.control)
        if self.buffered:
            self.buffered.agree(self.round, self.agreed)

    def close(self) -> None:
        for rows in self.rows.values():
            rows.close()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]

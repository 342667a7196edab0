"""What the islands have agreed on, on one of them; how far it has moved from that; and the sum of such moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konvoi.errors import MessageRefused, NonFiniteError, PlanError
from konvoi.plan.compress.codec import Codec, for_pieces
from konvoi.plan.compress.ladder import RUNGS, Ladder
from konvoi.plan.compress.none import none
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.layout import Layout

MOST_SPARE = 4  # vectors of a fragment


@dataclass
class Fragment:
    """Some of the parameters, and beside them vectors in which they lie one behind the other."""

    parameters: list[Tensor]
    agreed: Tensor
    parts: list[tuple[int, int]]
    codecs: list[Codec]  # of each part
    momentum: Tensor | None  # of the outer step
    left: Tensor | None  # of this island's moves by the encoding, and not yet sent
    taken: Tensor | None = None  # the weights, or the mean gradient, of the snapshot
    tentative: Tensor | None = None  # `left`, should the update be counted
    left_of_sums: dict[int, Tensor] = field(default_factory=dict)  # by part, of what this island added up
    tentative_sums: dict[tuple[bytes, int], Tensor] = field(default_factory=dict)  # by a sum's bytes and part
    _spare: list[Tensor] = field(default_factory=list)  # a new large vector costs more, in page faults, than its use

    def codec(self, part: int, rung: int) -> Codec:
        """A part's, at a rung where it has several."""
        codec = self.codecs[part]
        return codec.at(rung % len(RUNGS)) if isinstance(codec, Ladder) else codec

    def room(self) -> Tensor:
        """A vector to be written over."""
        try:
            return self._spare.pop()
        except IndexError:
            return torch.empty_like(self.agreed)

    def give_back(self, vector: Tensor | None) -> None:
        if vector is not None and len(self._spare) < MOST_SPARE:
            self._spare.append(vector)

    def views(self, vector: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self.parameters]
        pieces = vector.split(sizes)
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def present(self) -> Tensor:
        """The parameters as they are, copied."""
        vector = self.room()
        torch._foreach_copy_(self.views(vector), self.parameters)
        return vector


def check_kind(tensors: Sequence[Tensor]) -> None:
    """Raises: PlanError for those that cannot lie one behind the other."""
    kinds = {(p.device.type, p.dtype) for p in tensors}
    if len(kinds) != 1 or not kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}:
        raise PlanError(
            "islands exchange weights of one kind, float32 or float64 on the CPU, so far",
            found=", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds)),
        )


class Anchor:
    """Shared with the training step: `parameters` are read and written between two steps only."""

    def __init__(
        self, parameters: Mapping[str, Tensor], plan: Convoy, num_parts: int, beside: Sequence[Tensor] = ()
    ) -> None:
        """`beside`: what else is alike on all islands where gradients are agreed on: their optimizers' state."""
        self.plan, self.num_writes = plan, 0  # how often the parameters were written
        self._beside = list(beside)
        self._agreed_beside = self._present_beside()
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        self.layout = Layout.of(shapes, fragments=plan.fragments, num_parts=num_parts)
        self.is_lossy = plan.compression != none() and plan.feedback > 0
        tensors = [p.detach() for p in parameters.values()]
        check_kind(tensors)
        self.fragments = []
        for number, (start, stop) in enumerate(self.layout.fragments):
            own = tensors[start:stop]
            agreed, parts = torch.cat([p.reshape(-1) for p in own]), self.layout.parts(number)
            self.fragments.append(
                Fragment(
                    own,
                    agreed,
                    parts,
                    [for_pieces(plan.compression, self.layout.pieces(number, part)) for part in parts],
                    momentum=torch.zeros_like(agreed) if plan.outer_momentum else None,
                    left=torch.zeros_like(agreed) if self.is_lossy else None,
                )
            )

    def largest_part(self) -> int:
        """Bytes of an encoded part, at most."""
        return max(
            one.codec(number, rung=-1).num_bytes(stop - start, one.agreed.itemsize)
            for one in self.fragments
            for number, (start, stop) in enumerate(one.parts)
        )

    def of_round(self, round: int) -> Fragment:
        """The fragment that agrees in a round."""
        return self.fragments[(round - 1) % len(self.fragments)]

    def vectors(self) -> list[Tensor]:
        """All that was agreed: of each fragment the weights, and the outer step's momentum. Never written into."""
        own = [vector for one in self.fragments for vector in (one.agreed, one.momentum) if vector is not None]
        return [*own, *self._agreed_beside]

    @torch.no_grad()
    def load(self, vectors: Sequence[Tensor]) -> None:
        """Begin anew from what others have agreed; moves and what encodings have left out are dropped."""
        rest = list(vectors)
        self.num_writes += 1
        for one in self.fragments:
            one.agreed = rest.pop(0)
            if one.momentum is not None:
                one.momentum = rest.pop(0)
            if one.left is not None:
                one.left = torch.zeros_like(one.agreed)
            one.taken = one.tentative = None
            one.left_of_sums.clear()
            one.tentative_sums.clear()
            torch._foreach_copy_(one.parameters, one.views(one.agreed))
        for vector in rest:
            sizes = [tensor.numel() for tensor in self._beside]
            for tensor, piece in zip(self._beside, vector.split(sizes), strict=True):
                tensor.copy_(piece.view_as(tensor))
        self._agreed_beside = rest

    def _present_beside(self) -> list[Tensor]:
        """A copy, as one vector."""
        dtype = torch.promote_types(self._beside[0].dtype, torch.float32) if self._beside else None
        return [torch.cat([tensor.reshape(-1).to(dtype) for tensor in self._beside])] if self._beside else []

    def agree_on_present(self, round: int) -> None:
        """What the parameters are now is what was agreed: where the job's optimizer has taken the step."""
        one = self.of_round(round)
        one.agreed, one.taken = one.present(), None
        self._agreed_beside = self._present_beside()

    def views(self, round: int, vector: Tensor) -> list[Tensor]:
        """A vector of the round's fragment, as tensors of the parameters' shapes."""
        return self.of_round(round).views(vector)

    # -- this island's update ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def snapshot(self, round: int, gradient: Sequence[Tensor] | None = None) -> None:
        """Take the weights as they are between two steps, or the mean gradient of the steps behind."""
        one = self.of_round(round)
        one.taken = one.present() if gradient is None else torch.cat([g.reshape(-1) for g in gradient])

    @torch.no_grad()
    def encode(self, round: int, rung: int = 0) -> list[bytes]:
        """The snapshot's update, part by part: agreed weights minus present ones, or the gradient; so both are to be
        stepped against. None where the others have decided before it came to this.

        Raises: NonFiniteError.
        """
        one = self.of_round(round)
        taken = one.taken
        if taken is None:
            return []
        room = one.room()
        encoded: list[bytes] = []
        for number, (start, stop) in enumerate(one.parts):  # not pass by pass, for the processor's cache
            codec, update = one.codec(number, rung), room[start:stop]
            if self.plan.updates == "moves":
                torch.sub(one.agreed[start:stop], taken[start:stop], out=update)
            else:
                update.copy_(taken[start:stop])
            if one.left is not None:
                update.add_(one.left[start:stop], alpha=self.plan.feedback)
            if not math.isfinite(update.sum().item()) and not update.isfinite().all():
                raise NonFiniteError("the update of this island is not finite", found=f"round {round}")
            encoded.append(codec.encode(update))
            if one.left is not None:
                update.sub_(codec.decode(encoded[-1], update))  # what was left out
        tentative = room if one.left is not None else None
        if tentative is None:
            one.give_back(room)
        if one.taken is taken:  # the others have not decided meanwhile
            one.give_back(one.tentative)
            one.tentative = tentative
        return encoded

    # -- as the owner of a part -------------------------------------------------------------------------------------

    @torch.no_grad()
    def reduce(self, round: int, part: int, updates: Sequence[tuple[float, int, bytes]], rung: int = 0) -> bytes:
        """The weighted mean of a part, added up in the order that is given, and encoded once. `updates`: of each its
        weight, staleness and bytes.

        Raises: MessageRefused for a part that cannot be read.
        """
        one = self.of_round(round)
        codec, (start, stop) = one.codec(part, rung), one.parts[part]
        like = one.agreed[start:stop]
        total = sum(weight for weight, _, _ in updates) or 1.0
        mean = None
        for weight, staleness, data in updates:
            alpha = weight / total * (1 + staleness) ** -self.plan.damping
            decoded = codec.decode(data, like)
            mean = decoded.mul_(alpha) if mean is None else mean.add_(decoded, alpha=alpha)
        if mean is None:
            mean = torch.zeros_like(like)
        if part in one.left_of_sums:
            mean.add_(one.left_of_sums[part], alpha=self.plan.feedback)
        if not math.isfinite(mean.sum().item()) and not mean.isfinite().all():
            raise MessageRefused("a sum of updates is not finite", found=f"part {part} of round {round}")
        encoded = codec.encode(mean)
        if self.is_lossy:
            one.tentative_sums[encoded, part] = mean.sub_(codec.decode(encoded, like))
        return encoded

    # -- what was decided -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, round: int, results: Sequence[bytes]) -> Tensor:
        """The mean update, a vector to be given back by `done_with`. Raises: MessageRefused."""
        one = self.of_round(round)
        mean = one.room()
        for data, codec, (start, stop) in zip(results, one.codecs, one.parts, strict=True):
            mean[start:stop] = codec.decode(data, one.agreed[start:stop])
        for part, data in enumerate(results):
            if (data, part) in one.tentative_sums:
                one.left_of_sums[part] = one.tentative_sums[data, part]
            else:
                one.left_of_sums.pop(part, None)  # another added it up; what was left here is gone
        one.tentative_sums.clear()
        return mean

    def done_with(self, round: int, mean: Tensor) -> None:
        """It may be written over."""
        self.of_round(round).give_back(mean)

    def recycle(self, vectors: Sequence[Tensor]) -> None:
        """What was agreed once may be written over, where it is not agreed any more: nobody is given it."""
        now = {id(vector) for vector in self.vectors()}
        for vector in vectors:
            one = next((one for one in self.fragments if one.agreed.numel() == vector.numel()), None)
            if one is not None and id(vector) not in now:
                one.give_back(vector)

    def keep_left(self, round: int, was_counted: bool) -> None:
        """What this island's encoding has left out counts when its update does."""
        one = self.of_round(round)
        if was_counted and one.left is not None:
            assert one.tentative is not None
            one.left, one.tentative = one.tentative, one.left
        one.give_back(one.tentative)
        one.tentative = None

    @torch.no_grad()
    def apply(self, round: int, mean: Tensor, *, was_counted: bool, drop: bool = False) -> None:
        """Take the outer step, and go on from there with what was learnt since the snapshot.

        `was_counted`: this island's snapshot is in the mean. Where it is not, its move stays in the parameters, unless
        it is to be dropped.
        """
        one, plan = self.of_round(round), self.plan
        self.keep_left(round, was_counted)
        before, new = one.agreed, one.room()
        if one.momentum is None:
            step = mean if plan.outer_lr == 1 else torch.mul(mean, plan.outer_lr, out=new)
            torch.sub(before, step, out=new)
        else:  # Nesterov's: the step is mean + outer_momentum * momentum
            one.momentum = torch.add(mean, one.momentum, alpha=plan.outer_momentum, out=one.room())
            torch.add(before, mean, alpha=-plan.outer_lr, out=new)
            new.add_(one.momentum, alpha=-plan.outer_lr * plan.outer_momentum)
        one.agreed = new
        if drop and not was_counted:
            torch._foreach_copy_(one.parameters, one.views(one.agreed))
        else:
            base = one.taken if was_counted else before
            assert base is not None
            torch._foreach_sub_(one.parameters, one.views(base))
            torch._foreach_add_(one.parameters, one.views(one.agreed))
        self.num_writes += 1
        one.give_back(one.taken)
        one.taken = None

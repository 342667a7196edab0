"""Live gossip, as one of its islands sees it: what the machine of pairs wants is done, in tensors and messages.

Threads meet here as in a convoy that decides (`konvoi.convoy`): the machine runs under one lock, and weights are read
and written by the training loop alone, between two steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from konvoi.errors import MessageRefused
from konvoi.guarded import Guarded
from konvoi.parcels import Parcels
from konvoi.plan.compress import none
from konvoi.plan.compress.codec import Codec, for_pieces
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.layout import Layout
from konvoi.plan.sync import pairs, swaps
from konvoi.values import Wire


class LivePairs:
    """One island's place among others that gossip."""

    def __init__(
        self,
        name: str,
        names: tuple[str, ...],
        plan: Convoy,
        parameters: Mapping[str, Tensor],
        wire: Wire,
        life: int = 0,
        step: int = 0,
    ) -> None:
        """`parameters`: those that are trained, float32 or float64 on the CPU. `life`: another one for each process, 0
        for the first. `step`: those that were taken before."""
        self.name, self.plan, self.step = name, plan, step
        self.parameters = [p.detach() for p in parameters.values()]
        layout = Layout.of({n: tuple(p.shape) for n, p in parameters.items()}, fragments=1, num_parts=1)
        self.codec = for_pieces(plan.compression, layout.pieces(0, (0, layout.size(0))))
        self.state = pairs.begin(
            name, names, pairs.Rules(plan.every, plan.ahead), life, step=step, is_back=life > 0 and len(names) > 1
        )
        self.num_swapped = self.num_refused = self.num_writes = 0
        self.partners: list[str] = []  # of all exchanges, in their order
        self.error: BaseException | None = None
        self._is_over = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.wire = Guarded(wire, self._lock, self.fail)
        self._parcels = Parcels(name, self.wire)
        self._between_steps: deque[Callable[[], None]] = deque()
        with self._lock:
            self.wire.join(
                name, lambda sender, message: self.happen(swaps.Received(sender, message)), self._parcels.find
            )
            self.wire.watch(name, lambda peer, whether: self.happen(swaps.Reaches(peer, whether)))
            self._beat()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
            self._changed.notify_all()

    def stepped(self) -> None:
        """A step was taken. What has to be done now waits for `catch_up`."""
        with self._lock:
            self.step += 1
            self.happen(swaps.Stepped(self.step))

    def catch_up(self) -> bool:
        """Do what had to wait until no step was under way. Returns whether the next one may be taken."""
        with self._lock:
            if self.error is not None:
                raise self.error
            while self._between_steps:
                self._between_steps.popleft()()
            return not self.state.is_holding

    def look(self, seconds: float) -> bool:
        """Whether there is something for `catch_up`. Where there is not, and no step may be taken, wait for so long."""
        with self._lock:
            if self.error is not None:
                raise self.error
            if (self.state.is_holding or self.state.is_leaving) and not self._between_steps:
                self._changed.wait(seconds)
            return bool(self._between_steps)

    def is_settled(self) -> bool:
        with self._lock:
            return self.state.own is None and self.state.guest is None and not self._between_steps

    def leave(self) -> None:
        """Begin no exchange any more, and refuse to be asked."""
        self.happen(swaps.Leaving())

    def can_end(self) -> bool:
        """Whether there is something for `end` to do."""
        with self._lock:
            has_ended = self.state.ended is not None
            return self.state.has_all if has_ended else self.state.is_leaving and self.is_settled()

    @torch.no_grad()
    def end(self) -> bool:
        """Tell the others with which weights this island ends; later, when everybody's are here, take their mean.
        Returns whether it has."""
        with self._lock:
            if self.state.ended is None:
                self.happen(swaps.Ended(self._keep_present()))
                return False
            present = self._present()
            hashes = {**self.state.lasts, self.name: self.state.ended.hash}
            read = (self._read(none(), hash, present) for _, hash in sorted(hashes.items()) if hash)
            lasts = [weights.double() for weights in read if weights is not None]
            if lasts:
                self._load((sum(lasts, start=torch.zeros_like(lasts[0])) / len(lasts)).to(present.dtype))
            return True

    def _beat(self) -> None:
        if not self._is_over:
            self.happen(swaps.Beat())
            self.wire.after(self.state.rules.beat_s, self._beat)

    def close(self) -> None:
        self._is_over = True

    def happen(self, event: swaps.Event) -> None:
        with self._lock:
            self.state, actions = pairs.advance(self.state, event)
            for action in actions:
                if isinstance(action, swaps.Send):
                    self.wire.send(self.name, action.to, action.message)
                elif isinstance(action, swaps.Snapshot):
                    self._between_steps.append(partial(self._snapshot, action.id))
                elif isinstance(action, swaps.Offer):
                    self._between_steps.append(partial(self._offer, action.peer))
                elif isinstance(action, swaps.Collect):
                    self._parcels.fetch(action.peer, action.hash, partial(self._collect, action))
                else:
                    self._get(action)
            self._changed.notify_all()

    def _present(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.parameters])

    def _keep_present(self) -> str:
        self._parcels.keep_only(self.state.held)
        return self._parcels.keep(none().encode(self._present()))

    def _snapshot(self, id: swaps.Id) -> None:
        if self.state.own is None or self.state.own.id != id:
            return
        self.happen(swaps.Snapshotted(id, self._keep_present()))

    def _offer(self, peer: str) -> None:
        self.happen(swaps.Offered(peer, self._keep_present()))

    def _get(self, action: swaps.Halve | swaps.Take | swaps.Adopt) -> None:
        calls: dict[type, Callable[[Any], None]] = {
            swaps.Halve: self._halve,
            swaps.Take: self._take,
            swaps.Adopt: self._adopt,
        }

        def here(is_right: bool) -> None:
            if is_right:
                self._between_steps.append(partial(calls[type(action)], action))
                self._changed.notify_all()
            else:
                self._refuse(action)

        self._parcels.fetch(action.peer, action.hash, here, lambda: self._refuse(action))

    def _adopt(self, action: swaps.Adopt) -> None:
        if self.state.adopting is None or self.state.adopting.hash != action.hash or self.state.ended is not None:
            return
        theirs = self._read(none(), action.hash, self._present())
        if theirs is None:
            self._refuse(action)
            return
        self._load(theirs)
        self.step = action.step
        self.happen(swaps.Adopted(action.step))

    def _collect(self, action: swaps.Collect, is_right: bool) -> None:
        if is_right:
            self.happen(swaps.Collected(action.peer))
        else:
            self.num_refused += 1  # it will be told again

    @torch.no_grad()
    def _halve(self, action: swaps.Halve) -> None:
        if self.state.guest is None or self.state.guest.id != action.id:
            return
        mine, codec = self._present(), self.codec
        theirs = self._read(none(), action.hash, mine)
        if theirs is None or not mine.isfinite().all():
            self._refuse(action)
            return
        half = codec.encode((theirs - mine) / 2)
        self._move(codec.decode(half, mine))
        self.partners.append(action.peer)
        self.happen(swaps.Halved(action.id, self._parcels.keep(half)))

    @torch.no_grad()
    def _take(self, action: swaps.Take) -> None:
        if self.state.own is None or self.state.own.id != action.id:
            return
        half = self._read(self.codec, action.hash, self._present())
        if half is None:
            self._refuse(action)
            return
        self._move(-half)
        self.num_swapped += 1
        self.partners.append(action.peer)
        self.happen(swaps.Taken(action.id))

    def _read(self, codec: Codec, hash: str, like: Tensor) -> Tensor | None:
        """None for what is not here, cannot be read, or has values that are no numbers."""
        data = self._parcels.find(hash)
        try:
            return codec.decode(data, like) if data is not None else None
        except MessageRefused:
            return None

    def _refuse(self, action: swaps.Halve | swaps.Take | swaps.Adopt) -> None:
        self.num_refused += 1
        self.happen(swaps.Adopted(None) if isinstance(action, swaps.Adopt) else swaps.Failed(action.id))

    def _views(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.parameters]
        return [piece.view_as(p) for piece, p in zip(vector.split(sizes), self.parameters, strict=True)]

    def _move(self, by: Tensor) -> None:
        torch._foreach_add_(self.parameters, self._views(by))
        self.num_writes += 1

    @torch.no_grad()
    def _load(self, vector: Tensor) -> None:
        torch._foreach_copy_(self.parameters, self._views(vector))
        self.num_writes += 1

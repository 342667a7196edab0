"""Live gossip, as one of its islands sees it: what the machine of pairs wants is done, in tensors and messages.

Threads meet here as in a convoy that decides (`konvoi.convoy`): the machine runs under one lock, and weights are read
and written by the training loop alone, between two steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from konvoi.errors import MessageRefused
from konvoi.guarded import Guarded
from konvoi.parcels import Parcels
from konvoi.plan.compress import none
from konvoi.plan.compress.codec import Codec
from konvoi.plan.convoy import Convoy
from konvoi.plan.sync import pairs
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
    ) -> None:
        """`parameters`: those that are trained, float32 or float64 on the CPU. `life`: another one for each process."""
        self.name, self.plan = name, plan
        self.parameters = [p.detach() for p in parameters.values()]
        rules = pairs.Rules(plan.every, plan.ahead)
        self.state = pairs.begin(name, names, rules, life)
        self.step = self.num_swapped = self.num_refused = 0
        self.error: BaseException | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.wire = Guarded(wire, self._lock, self.fail)
        self._parcels = Parcels(name, self.wire)
        self._between_steps: deque[Callable[[], None]] = deque()
        with self._lock:
            self.wire.join(
                name, lambda sender, message: self.happen(pairs.Received(sender, message)), self._parcels.find
            )
            self.wire.watch(name, lambda peer, whether: self.happen(pairs.Reaches(peer, whether)))
            self._beat()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
            self._changed.notify_all()

    def stepped(self) -> None:
        """A step was taken. What has to be done now waits for `catch_up`."""
        with self._lock:
            self.step += 1
            self.happen(pairs.Stepped(self.step))

    def catch_up(self) -> bool:
        """Do what had to wait until no step was under way. Returns whether the next one may be taken."""
        with self._lock:
            if self.error is not None:
                raise self.error
            while self._between_steps:
                self._between_steps.popleft()()
            return not self.state.is_holding

    def is_settled(self) -> bool:
        with self._lock:
            return self.state.own is None and self.state.guest is None and not self._between_steps

    def leave(self) -> None:
        """Begin no exchange any more, and refuse to be asked."""
        self.happen(pairs.Leaving())

    def _beat(self) -> None:
        self.happen(pairs.Beat())
        self.wire.after(self.state.rules.beat_s, self._beat)

    def _receive(self, sender: str, message: pairs.Message) -> None:
        self.happen(pairs.Received(sender, message))

    def happen(self, event: pairs.Event) -> None:
        with self._lock:
            self.state, actions = pairs.advance(self.state, event)
            for action in actions:
                if isinstance(action, pairs.Send):
                    self.wire.send(self.name, action.to, action.message)
                elif isinstance(action, pairs.Snapshot):
                    self._between_steps.append(partial(self._snapshot, action.id))
                else:
                    self._get(action)
            self._changed.notify_all()

    def _present(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.parameters])

    def _snapshot(self, id: pairs.Id) -> None:
        self._parcels.keep_only({half for _, half in self.state.answered.values() if half})
        self.happen(pairs.Snapshotted(id, self._parcels.keep(none().encode(self._present()))))

    def _get(self, action: pairs.Halve | pairs.Take) -> None:
        halves = isinstance(action, pairs.Halve)

        def here(is_right: bool) -> None:
            if is_right:
                self._between_steps.append(partial(self._halve if halves else self._take, action))
                self._changed.notify_all()
            else:
                self._refuse(action.id)

        self._parcels.fetch(action.peer, action.hash, here)

    @torch.no_grad()
    def _halve(self, action: pairs.Halve | pairs.Take) -> None:
        if self.state.guest is None or self.state.guest.id != action.id:
            return
        mine, codec = self._present(), self.plan.compression
        theirs = self._read(none(), action.hash, mine)
        if theirs is None or not mine.isfinite().all():
            self._refuse(action.id)
            return
        half = codec.encode((theirs - mine) / 2)
        self._move(codec.decode(half, mine))
        self.happen(pairs.Halved(action.id, self._parcels.keep(half)))

    @torch.no_grad()
    def _take(self, action: pairs.Halve | pairs.Take) -> None:
        if self.state.own is None or self.state.own.id != action.id:
            return
        half = self._read(self.plan.compression, action.hash, self._present())
        if half is None:
            self._refuse(action.id)
            return
        self._move(-half)
        self.num_swapped += 1
        self.happen(pairs.Taken(action.id))

    def _read(self, codec: Codec, hash: str, like: Tensor) -> Tensor | None:
        """None for what cannot be read, or has values that are no numbers."""
        try:
            return codec.decode(self._parcels[hash], like)
        except MessageRefused:
            return None

    def _refuse(self, id: pairs.Id) -> None:
        self.num_refused += 1
        self.happen(pairs.Failed(id))

    def _move(self, by: Tensor) -> None:
        sizes = [p.numel() for p in self.parameters]
        pieces = [piece.view_as(p) for piece, p in zip(by.split(sizes), self.parameters, strict=True)]
        torch._foreach_add_(self.parameters, pieces)

"""A live convoy, as one of its islands sees it: what the machine of the round wants is done, in tensors and messages.

Three kinds of thread may meet here: the training loop, which calls `stepped` and `catch_up`; the wire's, which brings
messages and timers; and whoever encodes and adds up (`Wire.work`). The machine runs under one lock, in whichever comes.
Weights are read and written by the training loop alone, between two steps.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from konvoi.guarded import Guarded
from konvoi.joining import Library, Newcomer
from konvoi.notebook import Notebook
from konvoi.parcels import Parcels
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.sync import events as ev
from konvoi.plan.sync import leases
from konvoi.plan.sync import state as st
from konvoi.plan.sync.messages import Decided, Decision, Message, Piece, Range, Result, State, StateAsk
from konvoi.plan.sync.round import advance
from konvoi.state.journal import Journal
from konvoi.tally import Stopwatch, Tally
from konvoi.values import Wire


@dataclass
class Turn:
    """Something to be done between two steps, in its order."""

    call: Callable[[], None]
    is_ready: bool = True


class LiveConvoy:
    """One island's place in a convoy. Its agreements are those of `anchor`."""

    def __init__(
        self,
        name: str,
        plan: Convoy,
        rules: st.Rules,
        first: Decision,
        anchor: Anchor,
        wire: Wire,
        journal: Journal | None = None,
    ) -> None:
        """`first` is what the convoy begins with; where a journal has an entry, it goes on from there, and the agreed
        state is fetched from others. So is a newcomer's, whose `first` is `Decision.unknown`."""
        self.name, self.plan, self.anchor = name, plan, anchor
        self.state = st.State(name, rules, first)
        self.step, self.tally, self.watch = 0, Tally(), Stopwatch()
        self.step_with: Callable[[Decision, list[Tensor]], None] | None = None  # takes a mean gradient
        self.refused = Counter[str]()  # messages that were of no use, by sender
        self.error: BaseException | None = None  # of another thread, for the training loop to raise
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.wire = Guarded(wire, self._lock, self.fail)
        self._between_steps: deque[Turn] = deque()
        self.is_out = False
        self.arrival: tuple[Decision, int, float] | None = None  # of the state that was fetched last; bytes, seconds
        self._parcels = Parcels(name, self.wire)
        self._library = Library(anchor.recycle)
        self._newcomer: Newcomer | None = None
        self._notebook = Notebook(journal, self._parcels)
        is_back = self._notebook.recall(self.state)
        has_model = not is_back and (self.state.is_member or not self.state.can_be_member)
        stands = has_model or name == rules.witness
        self.is_holding = not stands
        with self._lock:
            self.wire.join(name, self.receive, self.find)
            self.wire.watch(name, lambda peer, whether: self.happen((ev.Found if whether else ev.Lost)(peer)))
            if not is_back:
                self._notebook.write(self.state.durable())  # whoever restarts from now on is back
            self.happen(ev.Started(stands))

    def fail(self, error: BaseException) -> None:
        """This island cannot go on; its training loop raises the reason."""
        with self._lock:
            self.error = self.error or error
            self._changed.notify_all()

    # -- from the training loop ---------------------------------------------------------------------------------------

    def positions(self, number: int) -> tuple[Range, ...]:
        """What the step that begins now reads; fewer than asked for where the lease ends."""
        with self._lock:
            self.watch.step_begins()
            lease = self.state.last.lease_of(self.name)
            return leases.take(leases.without_first(lease, self.tally.samples), number)

    def reading(self) -> leases.Reading:
        """What is to be read behind the weights that are here."""
        with self._lock:
            return leases.Reading.of(self.state.last, self.name, self.tally.samples)

    def stepped(self, samples: int, weight: float, gradients: Sequence[Tensor] = ()) -> None:
        """A step was taken; with gradients, their sums, none was. What has to be done now waits for `catch_up`."""
        with self._lock:
            self.step += 1
            self.watch.step_ends()
            self.tally.add(samples, weight, gradients)
            self.happen(ev.Stepped(self.step))

    def catch_up(self) -> bool:
        """Do what had to wait until no step was under way. Returns whether the next one may be taken."""
        with self._lock:
            if self.error is not None:
                raise self.error
            while self._has_turn():
                self._between_steps.popleft().call()
            return not self.is_holding

    def is_settled(self) -> bool:
        """Whether all that was sent is decided, and applied."""
        with self._lock:
            return not self.is_holding and self.state.snapped is None and not self._between_steps

    def look(self, seconds: float) -> bool:
        """Whether there is something for `catch_up`. Where there is not, and no step may be taken, wait for so long."""
        with self._lock:
            if self.error is not None:
                raise self.error
            if self.is_holding and not self._has_turn():
                self._changed.wait(seconds)
            return self._has_turn()

    def _has_turn(self) -> bool:
        return bool(self._between_steps) and self._between_steps[0].is_ready

    # -- from the wire ------------------------------------------------------------------------------------------------

    def receive(self, sender: str, message: Message) -> None:
        if isinstance(message, (Piece, Result)) and message.hash not in self._parcels:
            self._fetch(sender, message)
        elif isinstance(message, StateAsk):
            if (state := self._library.lend(message.round)) is not None:
                self.wire.send(self.name, sender, state)
        elif isinstance(message, State):
            if self._newcomer is not None:
                self._newcomer.on_state(sender, message)
        else:
            if isinstance(message, Decided) and self._newcomer is not None and message.round > self.state.round:
                self._newcomer.decided(message.decision)  # too far ahead for the machine, which goes step by step
            self.happen(ev.Received(sender, message))

    def find(self, hash: str) -> bytes | None:
        data = self._parcels.find(hash)
        return data if data is not None else self._library.find(hash)

    def _fetch(self, sender: str, message: Piece | Result) -> None:
        def here(is_right: bool) -> None:
            if is_right:
                self.happen(ev.Received(sender, message))
            else:
                self.refused[sender] += 1  # it will be asked for again

        if message.round > self.state.last.round and self.name != self.state.rules.witness:
            self._parcels.fetch(sender, message.hash, here)

    # -- coming in late ------------------------------------------------------------------------------------------------

    def _get_state(self, action: ev.Fetch) -> None:
        last = self.state.last
        if self._newcomer is None:
            ready, refuse = self._see_whether_ready, lambda sender: self.refused.update([sender])
            kept = self.state.rules.kept
            self._newcomer = Newcomer(self.name, self.anchor, self._parcels, self.wire, refuse, last, ready, kept)
        if action.at_beat:
            self._newcomer.beat()
        self._newcomer.ask(action.peers, last.round)
        self._see_whether_ready()

    def _see_whether_ready(self) -> None:
        """The state is here, and what was decided since: go on from there, between two steps."""
        assert self._newcomer is not None
        self._parcels.keep_only({*self._newcomer.needed(), *self.state.held, *self.state.pieces.values()})
        if self._newcomer.is_ready(ask=True) and not self._between_steps:
            self._between_steps.append(Turn(self._arrive))
            self._changed.notify_all()

    def _arrive(self) -> None:
        if self._newcomer is None or not self._newcomer.is_ready():
            return  # another decision has come in between
        decision = self._newcomer.arrive(lambda one, mean: self._move(one, mean, was_counted=False, drop=True))
        self.arrival = (decision, self._newcomer.num_bytes, self._newcomer.seconds)
        self._newcomer = None
        self.tally.drop()
        self.is_holding = False
        self.happen(ev.Fetched(decision))

    # -- the machine --------------------------------------------------------------------------------------------------

    def happen(self, event: ev.Event) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.state, actions = advance(self.state, event)
            if self._newcomer is not None:
                self._newcomer.decided(self.state.last)
            try:
                for action in actions:
                    ACTIONS[type(action)](self, action)
            except BaseException as error:
                self.fail(error)  # what is known and what is written down have parted
                raise
            self._changed.notify_all()

    def _send(self, action: ev.Send) -> None:
        self.wire.send(self.name, action.to, action.message, self._parcels.about(action.to, action.message))

    def _set_timer(self, action: ev.SetTimer) -> None:
        self.wire.timer(action.name, action.seconds, lambda: self.happen(ev.Timer(action.name, action.round)))

    def _take(self, round: int) -> None:
        if self.state.round != round:
            return  # it has been decided without this island
        own, step = self.tally.take(), self.step
        weight = own.weight if own.samples else self.tally.usual_weight
        self.watch.exchange_begins()
        self.anchor.snapshot(round, own.mean())
        last, vectors, cost = self.state.last, self.anchor.vectors(), self.watch.cost

        def work() -> tuple[list[bytes], str]:
            return self.anchor.encode(round, last.rung), self._library.put(last, vectors)

        def encoded(made: tuple[list[bytes], str]) -> None:
            names = tuple(self._parcels.keep(data) for data in made[0])
            self.happen(ev.Snapshotted(round, step, own.samples, weight, names, made[1], cost))

        self.wire.work(work, encoded)

    def _reduce(self, action: ev.Reduce) -> None:
        updates = [(one.weight, one.staleness, self._parcels[one.parts[action.part]]) for one in action.updates]
        rung = self.state.last.rung

        def done(data: bytes) -> None:
            self.happen(ev.Summed(action.round, action.ballot, action.part, self._parcels.keep(data)))

        self.wire.work(lambda: self.anchor.reduce(action.round, action.part, updates, rung), done)

    def _apply(self, action: ev.Apply) -> None:
        decision, counted = action.decision, action.counted
        is_own = counted is not None and counted == action.own
        self.tally.decided(was_counted=counted is not None, is_from_here=is_own)
        results = [self._parcels[hash] for hash in decision.results]
        self._parcels.keep_only({hash for one in (*self.state.kept, decision) for hash in one.results})
        turn = Turn(lambda: self._go_on(action, is_own, None))
        self._between_steps.append(turn)
        if not results:
            self.watch.exchange_ends()
            return
        turn.is_ready = False

        def decoded(mean: Tensor) -> None:
            self.watch.exchange_ends()
            turn.call, turn.is_ready = lambda: self._go_on(action, is_own, mean), True
            self._changed.notify_all()

        self.wire.work(lambda: self.anchor.decode(decision.round, results), decoded)

    def _go_on(self, action: ev.Apply, is_own: bool, mean: Tensor | None) -> None:
        if mean is not None:
            self._move(action.decision, mean, was_counted=is_own, drop=action.counted is not None)
            self.anchor.done_with(action.decision.round, mean)
        state = self.state  # which may be in a later round already
        self.is_holding = state.snapped is not None and state.step - state.snapped >= state.rules.max_ahead

    def _move(self, decision: Decision, mean: Tensor, *, was_counted: bool, drop: bool) -> None:
        round = decision.round
        if self.plan.updates == "moves":
            self.anchor.apply(round, mean, was_counted=was_counted, drop=drop)
            return
        self.anchor.keep_left(round, was_counted)
        if self.step_with is not None:  # a server only adds up
            self.step_with(decision, self.anchor.views(round, mean))
        self.anchor.agree_on_present(round)

    def _hold_or_out(self, action: ev.Hold | ev.Out) -> None:
        self.is_holding, self.is_out = True, self.is_out or isinstance(action, ev.Out)


ACTIONS: dict[type, Callable[..., None]] = {
    ev.Persist: lambda live, action: live._notebook.write(action.durable),
    ev.Send: LiveConvoy._send,
    ev.SetTimer: LiveConvoy._set_timer,
    ev.Snapshot: lambda live, action: live._between_steps.append(Turn(lambda: live._take(action.round))),
    ev.Reduce: LiveConvoy._reduce,
    ev.Apply: LiveConvoy._apply,
    ev.Hold: LiveConvoy._hold_or_out,
    ev.Fetch: LiveConvoy._get_state,
    ev.Out: LiveConvoy._hold_or_out,
}

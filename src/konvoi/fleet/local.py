"""The devices of this computer: workers forked by an agent, restarted when one of them dies."""

from __future__ import annotations

import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from konvoi.errors import FleetError, WorkerError
from konvoi.fleet.crew import AgentHandle, Crew
from konvoi.fleet.worker import Failure
from konvoi.observe.events import Emit, Restarted, Warned, WorkerDied

CAUSE_S = 3.0  # how long a broken connection waits for the failure that caused it


@dataclass(frozen=True)
class Site:
    """A place on this computer with a network of its own: what a command begins with to run there, and its address."""

    prefix: tuple[str, ...]
    address: str


@dataclass(frozen=True)
class Local:
    """Workers on this computer. Made by `kv.fleet.local`, and by a lab, which has a site for each island."""

    num_workers: int | None = None
    device: str | None = None
    max_restarts: int = 3
    start: Literal["fork", "spawn"] | None = None
    oversubscribe: bool = False
    islands: int = 1
    sites: tuple[Site, ...] = ()
    on_step: Callable[[str, int], None] | None = None  # called with an island's name, and the step that it has taken

    def size(self, machine: Mapping[str, Any]) -> int:
        """The number of workers here. Raises: FleetError for more workers than devices."""
        device = self.device_kind(machine)
        available = machine["num_cores"] if device == "cpu" else machine["num_devices"]
        wanted = self.num_workers if self.num_workers is not None else (1 if device == "cpu" else available)
        if wanted < 1:
            raise FleetError("a fleet has at least one worker", found=wanted)
        if wanted > available and not (device == "cpu" and self.oversubscribe):
            unit = "cores" if device == "cpu" else f"{device} devices"
            hint = "oversubscribe=True (--oversubscribe) lets CPU workers share cores: slow, good for trying a plan out"
            raise FleetError(
                "more workers than devices",
                found=f"{wanted} workers",
                expected=f"at most {available} {unit}",
                hint=hint,
            )
        return wanted

    def device_kind(self, machine: Mapping[str, Any]) -> str:
        """Raises: FleetError for a kind of device that is not here."""
        found: str = machine["device_kind"]
        if self.device not in (None, "cpu", found):
            raise FleetError(f"no device of kind '{self.device}' here", found=found, expected=self.device)
        return self.device or found


def local(
    num_workers: int | None = None,
    *,
    device: str | None = None,
    max_restarts: int = 3,
    start: Literal["fork", "spawn"] | None = None,
    oversubscribe: bool = False,
    islands: int = 1,
) -> Local:
    """This computer's devices: one worker an accelerator, or on the CPU one worker that uses every core.

    `device` chooses a kind ("cpu", "cuda"). When a worker dies, its island goes on from the newest checkpoint, at most
    `max_restarts` times. `start` is "fork" where that is safe and "spawn" elsewhere. `oversubscribe` allows more CPU
    workers than cores. `islands`: into how many the workers are divided, for plans that have a convoy.

    >>> local(2).num_workers
    2
    """
    return Local(num_workers, device, max_restarts, start, oversubscribe, islands)


def run(
    fleet: Local,
    agent: AgentHandle,
    body: bytes,
    *,
    num_workers: int,
    emit: Emit,
    should_stop: Callable[[], int],
    newest_step: Callable[[], int],
    needed_again: Sequence[str] = (),
    num_cores: int | None = None,
) -> list[Any]:
    """Run a pickled `(entry, payload)` as `entry(place, payload)` on every worker; their results in order.

    An entry is a function or "module:name", which the parent need not import.

    `should_stop()` is 0, 1 (save and stop) or 2 (end at once). `newest_step()` is where a restart goes on from;
    `needed_again` are modules that a first start can do without and a restart cannot. `num_cores`: for these workers,
    where others run beside them.
    Raises: the worker's own KonvoiError, else WorkerError with its traceback; KeyboardInterrupt when ended at once.
    """
    hello = agent.hello()
    spawn = fleet.start == "spawn" or (fleet.start is None and not hello["can_fork"])
    if spawn and fleet.start is None:
        emit(Warned(message="forking is not safe here: workers are spawned, which takes seconds longer"))
    device = fleet.device_kind(hello["machine"])
    for attempt in range(fleet.max_restarts + 1):
        with tempfile.TemporaryDirectory(prefix="konvoi-") as meeting, Crew(agent, num_workers, spawn=spawn) as crew:
            crew.start()
            places = place_fields(
                num_workers, device, num_cores or hello["machine"]["num_cores"], f"{meeting}/store", attempt
            )
            crew.submit(body, places, environment())
            outcome = _Watch(crew, emit, should_stop).until_done()
            if isinstance(outcome, list):
                return outcome
        if attempt == fleet.max_restarts:
            raise WorkerError(
                f"worker {outcome.worker} died ({outcome.reason}); "
                f"the island was restarted {attempt} times, as allowed",
                worker=outcome.worker,
                host=outcome.host,
                step=outcome.step,
                hint="SIGKILL without a person's doing is usually the kernel's, when memory runs out",
            )
        agent.replace_if_gone()
        for module in needed_again:
            agent.load(module)
        emit(Restarted(attempt=attempt + 1, max_restarts=fleet.max_restarts, from_step=newest_step()))
    raise AssertionError("unreachable")


def place_fields(
    num_workers: int, device: str, num_cores: int, store_file: str, attempt: int = 0
) -> list[dict[str, Any]]:
    """The fields of each worker's `Place`. On the CPU the workers share the cores evenly."""
    shared = {
        "num_workers": num_workers,
        "num_local_workers": num_workers,
        "device_kind": device,
        "num_threads": max(1, num_cores // num_workers) if device == "cpu" else 0,
        "store_file": store_file,
        "attempt": attempt,
    }
    return [{"worker": number, "local_worker": number, **shared} for number in range(num_workers)]


def environment() -> dict[str, str]:
    """For workers of one host: this program's own, as it is now, and what they need to meet."""
    # gloo needs no look-up of this host's name, which may be slow or wrong.
    meeting = {"GLOO_SOCKET_IFNAME": "lo0" if platform.system() == "Darwin" else "lo"}
    return {"TORCHINDUCTOR_COMPILE_THREADS": "1"} | dict(os.environ) | meeting


class _Watch:
    """Follows one attempt of a crew until every worker has a result, or one failed or died."""

    def __init__(self, crew: Crew, emit: Emit, should_stop: Callable[[], int]) -> None:
        self.crew, self.emit, self.should_stop = crew, emit, should_stop
        self.results: dict[int, Any] = {}
        self.step: int | None = None
        self.suspect: tuple[float, int, Failure] | None = None  # a broken connection, until its cause shows
        self.asked = 0

    def until_done(self) -> list[Any] | WorkerDied:
        while len(self.results) < self.crew.num_workers:
            self._pass_on_stop()
            try:
                messages = self.crew.messages(timeout_s=0.2)
            except FleetError as error:
                return self._died(0, str(error))
            for message in messages:
                if message.kind == "event":
                    self.step = getattr(message.body, "step", self.step)
                    self.emit(message.body)
                elif message.kind == "result":
                    self.results[message.worker] = message.body
                elif message.kind == "failure":
                    self._failed(message.worker, message.body)
                elif message.worker not in self.results:
                    return self._died(message.worker, _how(message.body))
            if self.suspect and time.monotonic() > self.suspect[0] + CAUSE_S:
                raise _as_error(self.suspect[1], self.suspect[2])
        return [self.results[number] for number in range(self.crew.num_workers)]

    def _pass_on_stop(self) -> None:
        wanted = self.should_stop()
        if wanted > 1:
            raise KeyboardInterrupt
        if wanted and not self.asked:
            self.crew.stop()
        self.asked = wanted

    def _failed(self, worker: int, failure: Failure) -> None:
        if not failure.is_consequence:
            raise _as_error(worker, failure)
        self.suspect = self.suspect or (time.monotonic(), worker, failure)

    def _died(self, worker: int, reason: str) -> WorkerDied:
        died = WorkerDied(worker=worker, host=platform.node(), reason=reason, step=self.step)
        self.emit(died)
        return died


def _how(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"


def _as_error(worker: int, failure: Failure) -> Exception:
    if failure.error is not None:
        step = f", step {failure.step}" if failure.step is not None else ""
        failure.error.add_note(f"where: worker {worker} on {platform.node()}{step}\n\n{failure.traceback}")
        return failure.error
    return WorkerError(
        f"{failure.kind}: {failure.message}",
        worker=worker,
        host=platform.node(),
        step=failure.step,
        remote_traceback=failure.traceback,
    )

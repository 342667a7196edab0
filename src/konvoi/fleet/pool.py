"""A pool of workers that outlives what runs on it: a function is sent to the first few of them, again and again.

A row that hangs or raises is named, and its workers are replaced where they did not come back. Each worker answers
each row exactly once, and one that did not answer loses its channel with its process: so what is left over from an
earlier row cannot be taken for this one's.
"""

from __future__ import annotations

import pickle
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from konvoi.errors import FleetError, WorkerError
from konvoi.fleet.crew import AgentHandle, Crew, Message
from konvoi.fleet.local import environment, place_fields
from konvoi.fleet.worker import Failure

GRACE_S = 2.0  # after one worker's failure, for the others to notice that it is gone
START_S = 60.0  # for an agent to load torch on a busy machine; forking itself takes milliseconds


class Pool:
    """`num_workers` workers with one thread each, on this computer. Use with `with`."""

    def __init__(self, agent: AgentHandle, num_workers: int, *, device: str = "cpu") -> None:
        self.agent, self.num_workers, self.device = agent, num_workers, device
        self.crew = Crew(agent, num_workers, spawn=not agent.hello()["can_fork"])
        self.meetings = tempfile.TemporaryDirectory(prefix="konvoi-pool-")
        self.num_rows = 0
        self._start(range(num_workers))

    def run(
        self,
        entry: Callable[..., Any] | str,
        payload: Any,
        num_workers: int,
        *,
        name: str = "",
        timeout_s: float = 60.0,
    ) -> list[Any]:
        """`entry(place, payload)` on the first `num_workers` workers; their results in order.

        An entry is a function that a worker can import, or "module:name".
        Raises: the worker's own KonvoiError, else WorkerError with its traceback; WorkerError for a row that hangs.
        """
        if not 1 <= num_workers <= self.num_workers:
            raise FleetError("more workers than the pool has", found=num_workers, expected=f"1 to {self.num_workers}")
        self._replace(number for number in range(num_workers) if number not in self.crew.pids)  # died while idle
        self.num_rows += 1
        store = f"{self.meetings.name}/{self.num_rows}"
        body = pickle.dumps((entry, payload))
        self.crew.submit(body, place_fields(num_workers, self.device, num_workers, store), environment())
        answers = self._answers(num_workers, timeout_s)
        results = [answers[number].body for number in range(num_workers) if _is(answers, number, "result")]
        if len(results) == num_workers:
            return results
        self._replace(number for number in range(num_workers) if number not in answers or _is_spent(answers[number]))
        raise _cause(name or str(entry), answers, num_workers, timeout_s)

    def _answers(self, num_workers: int, timeout_s: float) -> dict[int, Message]:
        """The last word of each worker; those who said nothing in time are absent."""
        answers: dict[int, Message] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < num_workers and (left := deadline - time.monotonic()) > 0:
            for message in self.crew.messages(timeout_s=min(left, 0.2)):
                if message.kind == "event" or message.worker >= num_workers:
                    continue
                if message.kind != "exited" or message.worker not in answers:
                    answers[message.worker] = message
                if message.kind != "result":
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers

    def _replace(self, numbers: Iterable[int]) -> None:
        gone = list(numbers)
        if gone:
            self.crew.end(gone)
            self._start(gone)

    def _start(self, numbers: Iterable[int]) -> None:
        """Returns when the agent has said that they run: `Crew.end` knows a worker from then on."""
        waiting = set(numbers)
        self.crew.start(sorted(waiting))
        deadline = time.monotonic() + START_S
        while waiting - set(self.crew.pids):
            self.crew.messages(timeout_s=0.2)
            if time.monotonic() > deadline:
                raise FleetError("the workers do not start", found=f"no word of {sorted(waiting)} in {START_S:.0f} s")

    def close(self) -> None:
        """Ends the workers; the agent stays its owner's."""
        self.crew.__exit__()
        self.meetings.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is(answers: dict[int, Message], number: int, kind: str) -> bool:
    return number in answers and answers[number].kind == kind


def _died(message: Message) -> bool:
    return message.kind == "exited"


def _is_spent(message: Message) -> bool:
    """Not fit for another row: a process whose meeting broke off goes on counting torch's groups, and the next meeting
    would wait for it under another name than everybody else's."""
    return _died(message) or (message.kind == "failure" and message.body.is_consequence)


def _cause(name: str, answers: dict[int, Message], num_workers: int, timeout_s: float) -> Exception:
    """What a row failed of: an exception, then a death, then silence; a broken connection only follows from those."""
    failures = [message for message in answers.values() if message.kind == "failure"]
    deaths = [message for message in answers.values() if _died(message)]
    silent = [number for number in range(num_workers) if number not in answers]
    for message in sorted(failures, key=lambda message: message.worker):
        if not message.body.is_consequence:
            return _raised(name, message.worker, message.body)
    if deaths:
        return _error(f"{name}: worker {deaths[0].worker} died (exit code {deaths[0].body})", deaths[0].worker)
    if silent and not failures:
        return _error(f"{name}: hangs: no answer from workers {silent} in {timeout_s:g} s", silent[0])
    return _raised(name, failures[0].worker, failures[0].body)


def _raised(name: str, worker: int, failure: Failure) -> Exception:
    if failure.error is not None:
        return failure.error
    return _error(f"{name}: {failure.kind}: {failure.message}", worker, failure.traceback, failure.step)


def _error(message: str, worker: int, remote_traceback: str = "", step: int | None = None) -> WorkerError:
    return WorkerError(message, worker=worker, host=platform.node(), step=step, remote_traceback=remote_traceback)

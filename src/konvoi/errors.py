"""Every error that Konvoi raises on purpose.

    KonvoiError
    ├── ConfigError            found before any worker starts
    │   ├── JobError           the model, objective, optimizer or length of a job
    │   ├── DataError          missing, empty or unreadable data; too few samples
    │   ├── PlanError          a way of splitting that cannot be
    │   ├── FleetError         too few devices, a launcher that does not fit
    │   └── MissingExtra       an optional dependency: which `pip install` mends it
    ├── StateError             run folders and checkpoints
    │   ├── CheckpointMismatch a checkpoint of another model
    │   └── DiskFull           the last whole checkpoint is intact
    ├── MessageRefused         what another island sent is damaged, too large, stale, or not finite
    ├── NonFiniteError         a loss or gradient that is not a number
    └── WorkerError            a worker raised or died: its own traceback, host, worker and step

Each says what was wrong, what was `found`, what was `expected`, and a `hint`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KonvoiError(Exception):
    """The root of the tree. `str()` is what a user reads: the message, then found, expected and hint, a line each."""

    def __init__(self, message: str, *, found: object = None, expected: object = None, hint: str = "") -> None:
        self.message, self.found, self.expected, self.hint = message, found, expected, hint
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross processes; keyword-only arguments would be lost by the default.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[KonvoiError], fields: dict[str, object]) -> KonvoiError:
    error = kind.__new__(kind)
    Exception.__init__(error, fields.get("message", ""))
    error.__dict__.update(fields)
    return error


class ConfigError(KonvoiError):
    """Found before any worker starts."""


class JobError(ConfigError):
    """The model, objective, optimizer or length of a job."""


class DataError(ConfigError):
    """Missing, empty or unreadable data; too few samples."""


class PlanError(ConfigError):
    """A way of splitting that cannot be."""


class FleetError(ConfigError):
    """Too few devices, or a launcher that does not fit the plan."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed", hint=f"pip install 'konvoi[{extra}]'"
        )


class StateError(KonvoiError):
    """Run folders and checkpoints."""


class CheckpointMismatch(StateError):
    """A checkpoint of another model."""


class DiskFull(StateError):
    """No room for a checkpoint; the last whole one is intact."""


class MessageRefused(KonvoiError):
    """What another island has sent cannot be used; the round goes on without it."""


class NonFiniteError(KonvoiError):
    """A loss or gradient that is not a number."""


class WorkerError(KonvoiError):
    """A worker raised or died. `remote_traceback` is its own."""

    def __init__(
        self, message: str, *, worker: int, host: str, step: int | None, remote_traceback: str = "", hint: str = ""
    ) -> None:
        self.worker, self.host, self.step, self.remote_traceback = worker, host, step, remote_traceback
        super().__init__(message, hint=hint)

    def __str__(self) -> str:
        where = f"worker {self.worker} on {self.host}" + (f", step {self.step}" if self.step is not None else "")
        trace = f"\n\n{self.remote_traceback.rstrip()}" if self.remote_traceback else ""
        return f"{super().__str__()}\n  where:    {where}{trace}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest right one, else the list.

    >>> did_you_mean("fdsp", ["dp", "fsdp"])
    'did you mean fsdp?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)

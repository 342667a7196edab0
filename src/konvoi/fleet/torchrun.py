"""Workers that another launcher started: torchrun's environment (also set by others that follow it)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from konvoi.errors import FleetError
from konvoi.fleet.worker import Place


def is_here() -> bool:
    """Whether this process is one of a launcher's workers."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_workers() -> int:
    return int(os.environ["WORLD_SIZE"])


def master() -> str:
    """The host on which the workers meet."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


def is_leader() -> bool:
    return os.environ["RANK"] == "0"


def is_restarted() -> bool:
    """Whether torchrun's elastic agent has restarted the workers after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def run_name() -> str:
    """A run's name that every worker of one launch finds alike, and a restart again."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id not in ("", "none"):
        return f"torchrun-{run_id}"
    launch = f"{os.environ.get('MASTER_ADDR')} {os.environ.get('MASTER_PORT')} {os.getppid()}"
    return f"torchrun-{hashlib.blake2b(launch.encode(), digest_size=4).hexdigest()}"


@contextlib.contextmanager
def place(device_kind: str, num_cores: int, send: Callable[[Any], None]) -> Iterator[Place]:
    """This process's place. SIGINT and SIGTERM ask for a stop after the present step. Raises: FleetError."""
    try:
        worker, num_workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local, num_local = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise FleetError(
            "the launcher's environment cannot be read", found=str(error), expected="numbers in RANK, WORLD_SIZE"
        ) from None
    stop: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other may handle signals
    handlers = {
        number: signal.signal(number, lambda got, _: stop.append(got))
        for number in ((signal.SIGINT, signal.SIGTERM) if is_main else ())
    }
    try:
        yield Place(
            worker=worker,
            num_workers=num_workers,
            local_worker=local,
            num_local_workers=num_local,
            device_kind=device_kind,
            num_threads=max(1, num_cores // num_local) if device_kind == "cpu" else 0,
            send=send,
            stop_requested=lambda: bool(stop),
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop:
        raise SystemExit(128 + stop[0])

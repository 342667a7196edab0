"""A torch trace of some steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def traced(path: Path, warn: Callable[[str], None]) -> Iterator[torch.profiler.profile]:
    """Steps 5 to 9 of the block, into a file for Chrome's and Perfetto's viewers; `step()` is called after each."""
    schedule = torch.profiler.schedule(wait=2, warmup=2, active=5, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=lambda p: p.export_chrome_trace(str(path))) as found:
        yield found
    if not path.exists():
        warn("no trace: it takes the steps 5 to 9, and the run had fewer")

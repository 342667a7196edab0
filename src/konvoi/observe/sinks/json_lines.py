"""`--json`: every event as a line of JSON on standard output, for programs."""

from __future__ import annotations

import sys
from typing import TextIO

from konvoi.observe.events import Event, to_json


class JsonLines:
    """Flushes each line, so that a program that reads the pipe sees an event when it happens."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, event: Event, /) -> None:
        self._stream.write(to_json(event) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Standard output is not ours to close."""
        self._stream.flush()

"""What the command says: data to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any


def out(text: str) -> None:
    sys.stdout.write(text + "\n")


def lines(found: Iterable[str]) -> None:
    for one in found:
        out(one)


def line(text: str) -> None:
    if sys.stderr is not None:  # a service may run with it closed
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def sinks(options: argparse.Namespace) -> list[Any]:
    """Where a run's events go beside its folder."""
    from konvoi.observe.sinks.json_lines import JsonLines
    from konvoi.observe.sinks.tensorboard import TensorBoard
    from konvoi.observe.sinks.terminal import terminal

    shown = [lambda folder: JsonLines() if options.json else terminal()]
    return [*shown, TensorBoard] if options.tensorboard else shown

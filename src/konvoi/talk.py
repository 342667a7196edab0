"""What the command says: data to stdout, talk to stderr; and nothing in it hides from a screen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from konvoi.units import visible


def out(text: str) -> None:
    written(visible(text, but="\n\t") + "\n")


def written(text: str) -> None:
    """What a model wrote goes out as it is: it is the data."""
    sys.stdout.write(text)


def lines(found: Iterable[str]) -> None:
    for one in found:
        out(visible(one))


def line(text: str) -> None:
    if sys.stderr is not None:  # a service may run with it closed
        sys.stderr.write(visible(text, but="\n\t") + "\n")
        sys.stderr.flush()


def sinks(options: argparse.Namespace) -> list[Any]:
    """Where a run's events go beside its folder."""
    from konvoi.observe.sinks.json_lines import JsonLines
    from konvoi.observe.sinks.tensorboard import TensorBoard
    from konvoi.observe.sinks.terminal import terminal

    shown = [lambda folder: JsonLines() if options.json else terminal()]
    return [*shown, TensorBoard] if options.tensorboard else shown

"""Progress on standard error: a live line on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from konvoi.observe.events import CheckpointSaved, Event, Restarted, RunEnded, RunStarted, StepDone, Warned, WorkerDied
from konvoi.observe.progress import Progress, words
from konvoi.observe.sinks import Sink
from konvoi.observe.wording import header, sentence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PLAIN_EVERY_S = 5.0
STYLES: dict[type[Event], str] = {CheckpointSaved: "dim", Warned: "yellow", Restarted: "yellow", WorkerDied: "red"}
MARKS: dict[type[Event], str] = {Warned: "warning: ", WorkerDied: "error: "}  # so that no meaning hangs on a colour


def terminal(stream: TextIO | None = None) -> Sink:
    """The sink that fits `stream` (standard error where None is given)."""
    stream = stream or sys.stderr
    if _in_notebook() or (stream.isatty() and os.environ.get("TERM") != "dumb"):
        from rich.console import Console

        return LiveLine(Console(file=stream, highlight=False))
    return PlainLines(stream)


class PlainLines:
    """At most a line of progress each five seconds by the events' own clock; everything that is news, always."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress = Progress()
        self._said_at = float("-inf")

    def __call__(self, event: Event, /) -> None:
        before, self._progress = self._progress, self._progress.after(event)
        if isinstance(event, RunStarted) and event.attempt == 0:
            self._say("\n".join(f"{label:<8} {text}" for label, text in header(event)))
        elif not isinstance(event, (StepDone, CheckpointSaved)):
            if sentence(event):
                self._say(_marked(event))
        elif self._is_due(event, is_first=before.num_seen == 0):
            self._said_at = event.time
            self._say(
                "step " + "  ".join(words(self._progress, event.time))
                if isinstance(event, StepDone)
                else _marked(event)
            )

    def close(self) -> None:
        self._stream.flush()

    def _is_due(self, event: StepDone | CheckpointSaved, is_first: bool) -> bool:
        is_edge = isinstance(event, StepDone) and (is_first or event.step == self._progress.num_steps)
        return is_edge or event.time - self._said_at >= PLAIN_EVERY_S

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class LiveLine:
    """One line that moves, and above it what is worth keeping. rich follows NO_COLOR by itself."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._progress = Progress()
        # What a program prints on the same terminal is shown above the line; a redirected stdout stays untouched.
        self._live = Live(
            get_renderable=self._line,
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def __call__(self, event: Event, /) -> None:
        self._progress = self._progress.after(event)
        if isinstance(event, RunStarted) and event.attempt == 0:
            self._head(event)
            self._live.start()
        elif isinstance(event, RunEnded):
            self._live.stop()
            self._say(_marked(event), "bold red" if event.reason == "failed" else "bold")
        elif not isinstance(event, StepDone):
            if sentence(event):
                self._say(_marked(event), STYLES.get(type(event), ""))
        elif event.step == self._progress.num_steps:
            self._say("step " + "  ".join(words(self._progress, event.time)), "")

    def close(self) -> None:
        self._live.stop()

    def _head(self, event: RunStarted) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for label, text in header(event):
            table.add_row(Text(label, style="dim"), Text(text, style="bold" if label == "run" else ""))
        self._console.print(table)

    def _say(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))

    def _line(self) -> Text:
        return line(self._progress, time.time(), self._console.width)


def line(progress: Progress, now: float, width: int) -> Text:
    """A bar and as many words as `width` columns hold."""
    from rich.text import Text

    said = words(progress, now)
    while len(said) > 2 and len("  ".join(said)) + 12 > width:
        said.pop()
    text = "  ".join(said)
    bar_width = min(max(width - len(text) - 3, 0), 40)
    done = round(bar_width * min(progress.step / max(progress.num_steps, 1), 1.0))
    bar = (("━" * done, "cyan"), ("─" * (bar_width - done), "dim"))
    return Text.assemble(*bar, " ", text, no_wrap=True, overflow="ellipsis")


def _marked(event: Event) -> str:
    """Without control characters: what a model or another host wrote must not steer the user's terminal."""
    told = MARKS.get(type(event), "") + sentence(event)
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in told)


def _in_notebook() -> bool:
    """A kernel with ipywidgets, without which rich cannot move a line there."""
    if "IPython" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter

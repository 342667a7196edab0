"""TensorBoard's event files, through the `tensorboard` package itself: neither torch nor TensorFlow is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from konvoi.errors import MissingExtra
from konvoi.observe.events import ClientsEvaluated, Evaluated, Event, RunStarted, Sampled, StepDone


class TensorBoard:
    """Writes to `tensorboard/` in the run folder; point `tensorboard --logdir` at the run, or at all runs.

    Raises: MissingExtra.
    """

    def __init__(self, run_folder: str | Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise MissingExtra("tensorboard", "tensorboard", "writing TensorBoard files") from error
        self._events, self._summaries, self._tensors, self._types = event_pb2, summary_pb2, tensor_pb2, types_pb2
        self._writer = EventFileWriter(str(Path(run_folder) / "tensorboard"))
        self._unit = "samples"

    def __call__(self, event: Event, /) -> None:
        match event:
            case RunStarted():
                self._unit = str(event.job.get("unit", "samples"))
                self._purge(event)
                self._text(event, 0, "run", _as_code({"job": event.job, "plan": event.plan, "machine": event.machine}))
            case StepDone():
                self._scalars(event, event.step, _figures(event, self._unit))
            case Evaluated():
                self._scalars(event, event.step, {f"{event.split}/{name}": v for name, v in event.values.items()})
            case ClientsEvaluated():
                found = [(f"{event.split}/{name}", values) for name, values in event.spread.items()]
                self._scalars(event, event.step, {f"{n} {key}": v for n, values in found for key, v in values.items()})
            case Sampled():
                self._text(event, event.step, "sample", _as_code(event.prompt + event.text))
            case _:
                pass

    def close(self) -> None:
        self._writer.close()

    def _purge(self, event: RunStarted) -> None:
        """TensorBoard forgets what it has from this step on: those steps are done again."""
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        step = (event.resumed_from or 0) + 1
        self._writer.add_event(self._events.Event(wall_time=event.time, step=step, session_log=start))

    def _scalars(self, event: Event, step: int, figures: Mapping[str, float]) -> None:
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._add(event, step, values)

    def _text(self, event: Event, step: int, tag: str, text: str) -> None:
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode()])
        metadata = self._summaries.SummaryMetadata(plugin_data=plugin)
        self._add(event, step, [self._summaries.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])

    def _add(self, event: Event, step: int, values: list[Any]) -> None:
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(self._events.Event(wall_time=event.time, step=step, summary=summary))


def _figures(event: StepDone, unit: str) -> dict[str, float]:
    seconds = max(event.seconds, 1e-9)
    return {
        "train/loss": event.loss,
        "train/grad_norm": event.grad_norm,
        "train/lr": event.lr,
        f"speed/{unit}_per_s": event.weight / seconds,
        "speed/step_s": event.seconds,
        "speed/waiting_on_data": event.data_s / seconds,
        "speed/waiting_on_others": event.wait_s / seconds,
    }


def _as_code(value: object) -> str:
    """Markdown, as TensorBoard shows texts: four blanks keep a line as it is."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
    return "\n".join(f"    {line}" for line in text.splitlines())

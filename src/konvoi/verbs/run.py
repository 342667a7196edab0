"""A run: what `train` returns, and what can be asked of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from konvoi.observe.events import RunEnded, StepDone
from konvoi.observe.sinks.jsonl import read_events, steps
from konvoi.state import record
from konvoi.verbs.evaluate import evaluate
from konvoi.verbs.export import save_pretrained
from konvoi.verbs.generate import generate
from konvoi.verbs.report import report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


@dataclass(frozen=True)
class Run:
    """One execution and the folder that records it."""

    folder: Path

    @cached_property
    def steps(self) -> list[StepDone]:
        """What happened at each step, those that were redone once."""
        return steps(read_events(self.folder / "events.jsonl"))

    @property
    def losses(self) -> list[float]:
        """The training loss of each step."""
        return [step.loss for step in self.steps]

    @property
    def reason(self) -> str:
        """Why it ended: "finished", "stopped", "early stopping", "failed"; "running" where it has not said."""
        ended = [event for event in read_events(self.folder / "events.jsonl") if isinstance(event, RunEnded)]
        return ended[-1].reason if ended else "running"

    def evaluate(self) -> Mapping[str, float]:
        """Held-out figures of the newest checkpoint; see `kv.evaluate`."""
        return evaluate(self.folder)

    def generate(self, prompt: str, *, num_tokens: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
        """What the model writes after a prompt; see `kv.generate`."""
        return generate(self.folder, prompt, num_tokens=num_tokens, temperature=temperature, seed=seed)

    def model(self, *, client: int | None = None) -> nn.Module:
        """The module with the newest checkpoint's weights, whole, on this process's CPU; or as a simulated client has
        fine-tuned them, where the fleet was told to `keep_finetuned`."""
        from konvoi.trained import load_model

        return load_model(record.Record(self.folder), client=client)

    def save_pretrained(self, folder: str | Path, *, merge: bool = False) -> Path:
        """Write safetensors and a config; see `kv.save_pretrained`."""
        return save_pretrained(self.folder, folder, merge=merge)

    def report(self) -> Path:
        """Write `report.html` anew and return its path."""
        return report(self.folder)

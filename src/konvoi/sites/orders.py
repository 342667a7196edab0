"""What a site's agent says to the process that trains, and what that answers: a line of JSON each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Told:
    """What the process is started with."""

    recipe: str  # path of the unpacked source
    overrides: Sequence[str]
    plan: Mapping[str, Any]
    spec: Mapping[str, Any]
    data: str
    site: str
    device: str = "cpu"
    threads: int = 0
    kind: str = "recipe"  # of the pack
    frozen: str = ""  # path of what nobody trains, as safetensors; "": nothing
    statistics: Mapping[str, Any] = field(default_factory=dict)  # of the pack


@dataclass(frozen=True)
class Order:
    """A round. `weights`: raw float32, controls behind them; `own`: what this site keeps for itself, as it was agreed
    last ("": nothing yet); `out`: where the result goes; `keep`: where what it keeps goes, for when it has counted."""

    round: int
    weights: str
    own: str
    out: str
    keep: str
    settings: Mapping[str, float]
    evaluate: bool
    finetune: bool = (
        False  # for this house alone: `out` is a module's weights then, and `keep` figures before and after
    )


@dataclass(frozen=True)
class Result:
    """`code` is above 0 where there is none."""

    code: int = 0
    samples: int = 0
    loss: float = 0.0
    valid_loss: float = 0.0
    valid_samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)  # what else is measured on these

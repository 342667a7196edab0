"""What a site's agent says to the process that trains, and what that answers: a line of JSON each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Result:
    """`code` is above 0 where there is none."""

    code: int = 0
    samples: int = 0
    loss: float = 0.0
    valid_loss: float = 0.0
    valid_samples: int = 0

"""What a round at a site has come to, as the fields of an update: those that the list has, and no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from konvoi.security.pack import Pack
from konvoi.sites.orders import Result
from konvoi.sites.protocol import VALID, Facts, fields


def values_of(pack: Pack, run: str, facts: Facts, result: Result, out: Path) -> dict[str, Any]:
    """`out`: the tensors that the process has left. What is listed and was not measured is no number, so that nothing
    is built of it; but of a site that keeps no samples it is 0, and weighs nothing."""
    listed, values = pack.leaves, dict[str, Any]()
    # What the process says has no say in these.
    known = {"run": bytes.fromhex(run), "round": facts.round, "base": bytes.fromhex(facts.base)}
    with np.load(out) as found:
        if pack.kind == "survey":
            return {name: found[name] for name in found} | known
        for part in ("move", "control"):
            if part in found:
                values |= fields(listed, found[part], part)
    known |= {
        "samples": result.samples,
        "loss": result.loss,
        "valid_loss": result.valid_loss,
        "valid_samples": result.valid_samples,
    }
    none = math.nan if result.valid_samples else 0.0
    for field in listed.frame("update").fields:
        if field.name in known:
            values[field.name] = known[field.name]
        elif field.name.startswith(VALID):
            values[field.name] = result.metrics.get(field.name.removeprefix(VALID), none)
    return values

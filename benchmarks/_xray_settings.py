"""What `xray.py` asks: settings of pooled training and of FedAvg, and of other algorithms around what FedAvg found."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from _xray import HOSPITALS, Trial

DIRICHLET = "dirichlet:0.3"
# Beyond Dirichlet lies the case in which nearly every hospital has one class alone; unequal numbers are in Dirichlet.
PARTITIONS = ("iid", DIRICHLET, "shards:2")

_pooled = functools.partial(
    Trial, plan="", lr=0.05, momentum=0.9, weight_decay=5e-4, epochs=15, depth=4, augment="turn"
)
# What differs from the first is what is asked.
POOLED = (
    _pooled(),
    _pooled(augment="none"),
    _pooled(augment="shift"),
    _pooled(augment="gamma"),
    _pooled(augment="strong"),
    _pooled(lr=0.02),
    _pooled(lr=0.15),
    _pooled(depth=3),
    _pooled(depth=5),
    _pooled(channels=32),
    _pooled(weight_decay=5e-3),
    _pooled(smoothing=0.1),
    _pooled(normals=4.0),
    _pooled(epochs=40),
)


@dataclass(frozen=True)
class Setting:
    """How a federation learns: its plan but for the algorithm, and what its hospitals do."""

    length: str = "rounds=30"  # all are 30 passes over what the hospitals have
    outer: str = ""
    lr: float = 0.1
    momentum: float = 0.0
    batch: int = 32
    schedule: str = "cosine"

    def trial(self, like: Trial, name: str = "fedavg", partition: str = DIRICHLET, **other: Any) -> Trial:
        """`like`: the pooled trial whose model and data it has."""
        own = {"lr": self.lr, "momentum": self.momentum, "batch": self.batch, "schedule": self.schedule}
        plan = ",".join(filter(None, (name, self.length, self.outer)))
        return replace(like, plan=plan, epochs=0.0, partition=partition, **{**own, **other})


FEDAVG = (
    Setting(),
    Setting(lr=0.03),
    Setting(lr=0.3),
    Setting("rounds=15,epochs=2"),
    Setting("rounds=60,epochs=0.5"),
    Setting("rounds=60,cohort=10"),
    Setting(outer="outer_momentum=0.5"),
    Setting(outer="outer_momentum=0.8"),
    Setting(outer="outer_momentum=0.9", lr=0.03),
    Setting(outer="outer_lr=1.5"),
    Setting(momentum=0.9, lr=0.02),
    Setting(momentum=0.9, lr=0.05),
    Setting(batch=16),
    Setting(schedule="constant"),
)


def algorithms(found: Setting) -> dict[str, tuple[Setting, ...]]:
    """Three settings of each: what it adds to the one that FedAvg has found, or takes in place of its outer step."""
    length = dict(part.split("=") for part in found.length.split(","))
    updates = int(length["rounds"]) * int(length.get("cohort", HOSPITALS))
    epochs = f",epochs={length['epochs']}" if "epochs" in length else ""

    def outer(*texts: str) -> tuple[Setting, ...]:
        return tuple(replace(found, outer=text) for text in texts)

    def also(*texts: str) -> tuple[Setting, ...]:
        return outer(*(",".join(filter(None, (text, found.outer))) for text in texts))

    plain = replace(found, momentum=0.0, outer="")
    rate = found.lr / (1 - found.momentum)
    buffers = ((5, ""), (10, ""), (10, "outer_momentum=0.3"))  # of ten who train at any time
    return {
        "fedprox": also("proximal=0.001", "proximal=0.01", "proximal=0.1"),
        "scaffold": tuple(replace(plain, lr=rate * part) for part in (1.0, 0.5, 0.25)),
        "fedadam": outer("outer_lr=0.003", "outer_lr=0.01", "outer_lr=0.03"),
        "fedyogi": outer("outer_lr=0.003", "outer_lr=0.01", "outer_lr=0.03"),
        "fedadagrad": outer("outer_lr=0.01", "outer_lr=0.03", "outer_lr=0.1"),
        "fedbuff": tuple(
            replace(found, length=f"rounds={updates // size},buffer={size},cohort=10{epochs}", outer=text)
            for size, text in buffers
        ),
    }

"""What joins the hosts of a lab, as a value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from konvoi.errors import FleetError


@dataclass(frozen=True, kw_only=True)
class Link:
    """How far each host is from every other.

    - `up`, `down`: Mbit/s that a host may send and receive.
    - `rtt`: ms from a host to another and back; `jitter`: ms, by which a packet may be later than that.
    - `loss`: share of packets that are lost; `burst`: mean length of a run of losses, in packets (Gilbert, 1960).
    - `mtu`: bytes of the largest packet; `queue_ms`: what a host's queue holds, beyond which packets are dropped.
    - `congestion`: the hosts' TCP congestion control (cubic, bbr, reno); "" is the machine's own.

    >>> Link(up=20, down=20, rtt=200, loss=0.01, burst=5).rtt
    200
    """

    up: float = 100.0
    down: float = 100.0
    rtt: float = 80.0
    jitter: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    mtu: int = 1500
    queue_ms: float = 200.0
    congestion: str = ""

    def __post_init__(self) -> None:
        limits = {"up": 1e-3, "down": 1e-3, "rtt": 0, "jitter": 0, "loss": 0, "burst": 1, "mtu": 576, "queue_ms": 1}
        for name, least in limits.items():
            if not getattr(self, name) >= least:
                raise FleetError(f"a link's {name} is at least {least:g}", found=repr(getattr(self, name)))
        if self.loss >= 1:
            raise FleetError("a link loses less than all", found=f"loss={self.loss}")

    def describe(self) -> str:
        """
        >>> Link(loss=0.01).describe()
        'up=100.0, down=100.0, rtt=80.0, loss=0.01'
        """
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {n: v for n, v in shown.items() if n in ("up", "down", "rtt") or v != getattr(Link, n)}
        return ", ".join(f"{name}={value}" for name, value in kept.items())

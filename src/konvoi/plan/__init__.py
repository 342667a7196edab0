"""HOW the work is split: plans are frozen values, checked whole before a worker starts."""

from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.federated import fedadagrad, fedadam, fedavg, fedbuff, fedprox, fedyogi, scaffold
from konvoi.plan.island import Island
from konvoi.plan.local import Local
from konvoi.plan.presets import (
    adaptive,
    async_sgd,
    decoupled_momentum,
    diloco,
    gossip,
    local_sgd,
    parameter_server,
    parse,
    stale_synchronous,
    streaming_diloco,
)

__all__ = [
    "Convoy",
    "Island",
    "Local",
    "Plan",
    "adaptive",
    "async_sgd",
    "decoupled_momentum",
    "diloco",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedbuff",
    "fedprox",
    "fedyogi",
    "gossip",
    "local_sgd",
    "parameter_server",
    "parse",
    "scaffold",
    "stale_synchronous",
    "streaming_diloco",
]

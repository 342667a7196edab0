"""HOW the work is split: plans are frozen values, checked whole before a worker starts."""

from konvoi.plan.convoy import Convoy, Plan, diloco, local_sgd, parameter_server, parse, streaming_diloco
from konvoi.plan.island import Island

__all__ = ["Convoy", "Island", "Plan", "diloco", "local_sgd", "parameter_server", "parse", "streaming_diloco"]

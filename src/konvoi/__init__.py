"""Konvoi trains PyTorch models on whatever machines there are: the same program, another plan, another fleet."""

from konvoi import errors, fleet
from konvoi.job import adapt, data, models, objectives, optimizers, schedules
from konvoi.job.job import Hooks, Job
from konvoi.plan import (
    Convoy,
    Island,
    Local,
    adaptive,
    async_sgd,
    compress,
    decoupled_momentum,
    diloco,
    fedadagrad,
    fedadam,
    fedavg,
    fedbuff,
    fedprox,
    fedyogi,
    gossip,
    local_sgd,
    parameter_server,
    scaffold,
    stale_synchronous,
    streaming_diloco,
)
from konvoi.verbs.doctor import doctor
from konvoi.verbs.evaluate import evaluate
from konvoi.verbs.export import save_pretrained
from konvoi.verbs.generate import generate
from konvoi.verbs.join import join
from konvoi.verbs.report import report
from konvoi.verbs.run import Run
from konvoi.verbs.statistics import statistics
from konvoi.verbs.train import train

__version__ = "0.1.0.dev0"

__all__ = [
    "Convoy",
    "Hooks",
    "Island",
    "Job",
    "Local",
    "Run",
    "adapt",
    "adaptive",
    "async_sgd",
    "compress",
    "data",
    "decoupled_momentum",
    "diloco",
    "doctor",
    "errors",
    "evaluate",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedbuff",
    "fedprox",
    "fedyogi",
    "fleet",
    "generate",
    "gossip",
    "join",
    "local_sgd",
    "models",
    "objectives",
    "optimizers",
    "parameter_server",
    "report",
    "save_pretrained",
    "scaffold",
    "schedules",
    "stale_synchronous",
    "statistics",
    "streaming_diloco",
    "train",
]

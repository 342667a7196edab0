"""Where samples come from: ready-made data, and wrappers for everybody else's. Nothing here imports torch."""

from konvoi.job.data.hub import hub
from konvoi.job.data.images import images
from konvoi.job.data.mapping import map
from konvoi.job.data.normalized import normalize
from konvoi.job.data.of import of
from konvoi.job.data.partition import by_key, dirichlet, iid, quantity_skew, shards
from konvoi.job.data.slot import slot
from konvoi.job.data.tensors import tensors
from konvoi.job.data.text import text

__all__ = [
    "by_key",
    "dirichlet",
    "hub",
    "iid",
    "images",
    "map",
    "normalize",
    "of",
    "quantity_skew",
    "shards",
    "slot",
    "tensors",
    "text",
]

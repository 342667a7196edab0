"""Where samples come from: ready-made data, and wrappers for everybody else's. Nothing here imports torch."""

from konvoi.job.data.hub import hub
from konvoi.job.data.images import images
from konvoi.job.data.mapping import map
from konvoi.job.data.of import of
from konvoi.job.data.tensors import tensors
from konvoi.job.data.text import text

__all__ = ["hub", "images", "map", "of", "tensors", "text"]

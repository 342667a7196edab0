"""Ready-made models: frozen values that fit themselves to the data, and build the module when they are called."""

from konvoi.job.models.cnn import CNN, cnn
from konvoi.job.models.gpt import GPT, gpt
from konvoi.job.models.hf import HF, hf
from konvoi.job.models.mlp import MLP, mlp

__all__ = ["CNN", "GPT", "HF", "MLP", "cnn", "gpt", "hf", "mlp"]

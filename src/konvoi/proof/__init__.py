"""The proof that every way of splitting computes the same: rows that compare a plan with one process.

In float64, with AdamW, weight decay, clipping that acts, and a learning rate at which the loss falls: losses and
gradient norms of every step, the first step's gradients, the final weights and a held-out loss agree to 1e-9. The
same rows, sent to a pool of workers, are the tests' equivalence table and `konvoi doctor --self-test`.

What is not the same under every plan, and cannot be: dropout (each worker draws its own) and batch norm (its
statistics are those of one micro-batch).
"""

from konvoi.proof.cases import CASES, Case, case
from konvoi.proof.steps import Trace, differences, is_a_fair_test, trace
from konvoi.proof.table import Row, Table, rows

PRELOAD = ("konvoi.proof", "torch.distributed.fsdp", "torch._dynamo")  # what a pool's agent loads before it forks

__all__ = [
    "CASES",
    "PRELOAD",
    "Case",
    "Row",
    "Table",
    "Trace",
    "case",
    "differences",
    "is_a_fair_test",
    "rows",
    "trace",
]

"""What updates are turned into on their way: values that encode and decode."""

from konvoi.plan.compress.frequencies import frequencies
from konvoi.plan.compress.int8 import int8
from konvoi.plan.compress.ladder import ladder
from konvoi.plan.compress.largest_of import largest_of
from konvoi.plan.compress.low_bit import four_bit, low_bit
from konvoi.plan.compress.none import none
from konvoi.plan.compress.power_sgd import power_sgd
from konvoi.plan.compress.top_k import top_k

__all__ = [
    "four_bit",
    "frequencies",
    "int8",
    "ladder",
    "largest_of",
    "low_bit",
    "none",
    "power_sgd",
    "top_k",
]

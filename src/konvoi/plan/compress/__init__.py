"""What updates are turned into on their way: `none int8 low_bit top_k ladder`, values that encode and decode."""

from konvoi.plan.compress.int8 import int8
from konvoi.plan.compress.ladder import ladder
from konvoi.plan.compress.low_bit import four_bit, low_bit
from konvoi.plan.compress.none import none
from konvoi.plan.compress.top_k import top_k

__all__ = ["four_bit", "int8", "ladder", "low_bit", "none", "top_k"]

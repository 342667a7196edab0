"""HOW the work is split: plans are frozen values, checked whole before a worker starts."""

from konvoi.plan.island import Island, parse

__all__ = ["Island", "parse"]

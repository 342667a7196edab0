"""Numbers made fit to draw: ranges, ticks, smoothing, thinning. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from konvoi.units import format_count

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1]."""

    low: float
    high: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int) -> list[float]:
        return self._log_ticks(about) if self.is_log else _even_ticks(self.low, self.high, about)

    def _log_ticks(self, about: int) -> list[float]:
        """The roundest numbers first, each where it still has room."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks: list[float] = []
        for mantissa in (1, 2, 5, 3, 1.5, 4, 7, 1.2, 2.5, 6):
            for tick in (mantissa * 10.0**decade for decade in decades):
                has_room = all(abs(self(tick) - self(other)) >= 0.6 / about for other in ticks)
                if self.low <= tick <= self.high and has_room:
                    ticks.append(tick)
        return sorted(ticks)


def fit_scale(values: Sequence[float], *, from_zero: bool = False, log_from: float = math.inf) -> Scale:
    """Holds every finite value; logarithmic where the largest is at least `log_from` times the smallest."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low > 0 and high / low >= log_from:
        margin = (high / low) ** 0.04
        return Scale(low / margin, high * margin, is_log=True)
    low = min(low, 0.0) if from_zero else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low if from_zero else low - margin, high + margin)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window around each point, about a fortieth of the run wide; values that are not finite are left out.

    The window is symmetric at the start, where losses fall so fast that a lagging mean would lie above every point.
    """
    finite = [math.isfinite(value) for value in values]
    sums = [0.0, *accumulate(value if ok else 0.0 for value, ok in zip(values, finite, strict=True))]
    counts = [0, *accumulate(finite)]
    reach = min(max(len(values) // 80, 2), 300)
    smoothed = []
    for i in range(len(values)):
        start, stop = i - min(reach, i), min(i + min(reach, i) + 1, len(values))
        count = counts[stop] - counts[start]
        smoothed.append((sums[stop] - sums[start]) / count if count else math.nan)
    return smoothed


@dataclass(frozen=True)
class Bucket:
    x: float
    low: float
    mean: float
    high: float


def thin(points: Sequence[Point], limit: int) -> list[Bucket]:
    """At most `limit` buckets of neighbours, so that no spike is lost: its bucket's `high` shows it."""
    size = max(1, math.ceil(len(points) / max(limit, 1)))
    return [_bucket(points[i : i + size]) for i in range(0, len(points), size)]


def format_tick(value: float) -> str:
    """
    >>> [format_tick(value) for value in (0.0003, 1.5, 250, 12_500)]
    ['0.0003', '1.5', '250', '12.5 k']
    """
    if value and abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.6g}" if abs(value) < 1000 else format_count(value).replace(".0 ", " ")


def _bucket(points: Sequence[Point]) -> Bucket:
    x = points[len(points) // 2][0]
    ys = [y for _, y in points if math.isfinite(y)]
    return Bucket(x, min(ys), sum(ys) / len(ys), max(ys)) if ys else Bucket(x, math.nan, math.nan, math.nan)


def _even_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= 0.8 * rough)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

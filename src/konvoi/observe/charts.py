"""Line charts as inline SVG: axes, a faint raw line under a smoothed one, dots, marks, and values under the pointer.

Colours and fonts come from the page's style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from konvoi.observe.scales import Bucket, Point, Scale, fit_scale, format_tick, smooth, thin

MAX_DENSITY = (
    2.0  # points a pixel; beyond, the raw line becomes a band from each bucket's smallest to its largest value
)
NUM_HITS = 90  # places where the pointer finds a value


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at one x: a vertical line."""

    x: float
    text: str
    is_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What to draw: a value at each step."""

    name: str  # what y is, "training loss"
    points: Sequence[Point]
    dots: Sequence[Point] = ()
    dots_name: str = ""
    marks: Sequence[Mark] = ()
    from_zero: bool = False
    log_from: float = math.inf
    is_smoothed: bool = True
    format_y: Callable[[float], str] = field(default=format_tick)


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle inside the drawing, and its scales."""

    width: float
    height: float
    x_scale: Scale
    y_scale: Scale
    left: float = 46
    right: float = 10
    top: float = 22
    bottom: float = 24

    def x(self, value: float) -> float:
        return round(self.left + self.x_scale(value) * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        return round(self.height - self.bottom - self.y_scale(value) * (self.height - self.top - self.bottom), 1)


def draw(chart: Chart, width: int, height: int) -> str:
    """One <svg>, `width` by `height` CSS pixels at full size."""
    values = [y for _, y in (*chart.points, *chart.dots)]
    y_scale = fit_scale(values, from_zero=chart.from_zero, log_from=chart.log_from)
    x_scale = Scale(0.0, max([1.0, *(x for x, _ in chart.points)]))
    frame = _Frame(width, height, x_scale, y_scale)
    parts = [_axes(frame, chart), *(_mark(frame, mark) for mark in chart.marks)]
    parts += [_lines(frame, chart), _hits(frame, chart), _dots(frame, chart)]
    label = escape(f"{chart.name} by step", quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(frame: _Frame, chart: Chart) -> str:
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    lines = []
    for tick in frame.y_scale.ticks(about=max(2, int(frame.height // 55))):
        y = frame.y(tick)
        lines.append(f'<path class="grid" d="M{frame.left} {y}H{right}"/>')
        lines.append(
            f'<text class="tick" x="{frame.left - 7}" y="{y + 3.5}" text-anchor="end">{chart.format_y(tick)}</text>'
        )
    ticks = frame.x_scale.ticks(about=max(2, int(frame.width // 80)))
    for tick in ticks:
        x, is_last = frame.x(tick), frame.width - frame.x(tick) < 30
        text = (f"{tick:,.0f}" if tick < 1e5 else format_tick(tick)) + (
            " steps" if tick == ticks[-1] and not is_last else ""
        )
        lines.append(f'<path class="axis" d="M{x} {floor}v4"/>')
        anchor = "end" if is_last else "middle"
        lines.append(
            f'<text class="tick" x="{right if is_last else x}" y="{floor + 17}" text-anchor="{anchor}">{text}</text>'
        )
    return "".join(lines) + f'<path class="axis" d="M{frame.left} {floor}H{right}"/>'


def _mark(frame: _Frame, mark: Mark) -> str:
    x, floor, kind = frame.x(mark.x), frame.height - frame.bottom, "mark bad" if mark.is_bad else "mark"
    rule = f"M{x} {frame.top}V{floor}"
    hover = f"<title>{escape(mark.text)}</title>"
    return f'<g class="{kind}"><path d="{rule}"/><path class="wide" d="{rule}"/>{hover}</g>'


def _lines(frame: _Frame, chart: Chart) -> str:
    num_buckets = int(frame.width / 2)
    points = _smoothed(chart) if chart.is_smoothed else chart.points
    line = f'<path class="line" d="{_path(frame, thin(points, num_buckets))}"/>'
    if not chart.is_smoothed:
        return line
    if len(chart.points) <= MAX_DENSITY * frame.width:
        return f'<path class="raw" d="{_path(frame, thin(chart.points, len(chart.points)))}"/>{line}'
    return f'<path class="band" d="{_band(frame, thin(chart.points, num_buckets))}"/>{line}'


def _path(frame: _Frame, buckets: Sequence[Bucket]) -> str:
    """Broken where a value is not finite."""
    commands, is_down = [], False
    for bucket in buckets:
        if math.isfinite(bucket.mean):
            commands.append(f"{'L' if is_down else 'M'}{frame.x(bucket.x)} {frame.y(bucket.mean)}")
        is_down = math.isfinite(bucket.mean)
    return "".join(commands)


def _band(frame: _Frame, buckets: Sequence[Bucket]) -> str:
    finite = [bucket for bucket in buckets if math.isfinite(bucket.mean)]
    there = [f"{frame.x(bucket.x)} {frame.y(bucket.high)}" for bucket in finite]
    back = [f"{frame.x(bucket.x)} {frame.y(bucket.low)}" for bucket in reversed(finite)]
    return f"M{'L'.join(there + back)}Z" if finite else ""


def _dots(frame: _Frame, chart: Chart) -> str:
    points = [point for point in chart.dots if math.isfinite(point[1])]
    if not points:
        return ""
    line = "L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points)
    circles = [
        f'<g class="dot"><circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="3.5"/>'
        f'<circle class="wide" cx="{frame.x(x)}" cy="{frame.y(y)}" r="10"/>'
        f"<title>{escape(chart.dots_name)} at step {x:,.0f}: {y:.4f}</title></g>"
        for x, y in points
    ]
    return f'<path class="dots" d="M{line}"/>{"".join(circles)}'


def _hits(frame: _Frame, chart: Chart) -> str:
    """Invisible columns; the one under the pointer shows its rule, its point and its value, without any script."""
    points = _smoothed(chart) if chart.is_smoothed else chart.points
    buckets = [bucket for bucket in thin(points, NUM_HITS) if math.isfinite(bucket.mean)]
    floor = frame.height - frame.bottom
    edges = [frame.x(bucket.x) for bucket in buckets]
    columns = []
    for i, (bucket, x) in enumerate(zip(buckets, edges, strict=True)):
        start = (edges[i - 1] + x) / 2 if i else frame.left
        stop = (edges[i + 1] + x) / 2 if i + 1 < len(edges) else frame.width - frame.right
        text = f"step {bucket.x:,.0f}: {chart.format_y(float(f'{bucket.mean:.4g}'))}"
        columns.append(
            f'<g class="hit"><rect x="{start:.1f}" y="{frame.top}" width="{stop - start:.1f}"'
            f' height="{floor - frame.top}"/>'
            f'<g class="tip"><path d="M{x} {frame.top}V{floor}"/><circle cx="{x}" cy="{frame.y(bucket.mean)}" r="3.5"/>'
            f'<text x="{frame.width - frame.right}" y="13" text-anchor="end">{escape(text)}</text></g></g>'
        )
    return "".join(columns)


def _smoothed(chart: Chart) -> list[Point]:
    means = smooth([y for _, y in chart.points])
    return [(x, mean) for (x, _), mean in zip(chart.points, means, strict=True)]

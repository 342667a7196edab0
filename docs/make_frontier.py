"""Draw docs/frontier.svg, loss over bytes, from benchmarks/results/learning.jsonl: `python docs/make_frontier.py`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import wan  # noqa: E402

PAGE = Path(__file__).parent / "frontier.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 460, 64, 300, 44, 52
LEAST, MOST, WORST = 10.0, 2000.0, 0.2  # of how many times fewer bytes; of the gap
COLOURS = ("#1666d0", "#0b8a5c", "#c2571a", "#8a3fa0", "#7a7a7a", "#b01e45")

Point = tuple[float, float]


def curves(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Point]]:
    """By method: (how many times fewer bytes, the relative gap to synchronous training)."""
    found: dict[str, list[Point]] = {}
    best = min((runs[one.id]["valid"] for one in wan.TRIALS[wan.SYNCHRONOUS] if one.id in runs), default=None)
    if best is None:
        return found

    def of(trials: Sequence[Any]) -> list[Point]:
        done = [runs[one.id] for one in trials if one.id in runs]
        return [(one["fewer_bytes"], one["valid"] / best - 1) for one in done]

    each = [min(points, key=lambda point: point[1]) for rate in wan.RATES if (points := of(wan.TRIALS[rate]))]
    if each:
        found["Konvoi's plans, 1 bit"] = each
    found |= {name: points for name, trials in wan.OTHERS.items() if (points := of(trials))}
    full = {rate: _in_full(rate, runs) for rate in wan.RATES}
    if any(full.values()):
        found["Konvoi's plans, three times as long"] = [point for point in full.values() if point]
    return found


def _in_full(rate: int, runs: Mapping[str, Mapping[str, Any]]) -> Point | None:
    """The mean of the seeds, on the other split."""

    def chosen(of: int) -> list[Mapping[str, Any]]:
        done = [one for one in wan.TRIALS[of] if one.id in runs]
        if not done:
            return []
        one = min(done, key=lambda trial: runs[trial.id]["valid"])
        again = [wan.replace(one, steps=wan.FULL, seed=seed) for seed in wan.SEEDS]
        return [runs[trial.id] for trial in again if trial.id in runs]

    mine, theirs = chosen(rate), chosen(wan.SYNCHRONOUS)
    if len(mine) < len(wan.SEEDS) or len(theirs) < len(wan.SEEDS):
        return None
    gaps = [a["test"] / b["test"] - 1 for a, b in zip(mine, theirs, strict=True)]
    return mine[0]["fewer_bytes"], sum(gaps) / len(gaps)


def x(fewer: float) -> float:
    share = math.log(fewer / LEAST) / math.log(MOST / LEAST)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def y(gap: float) -> float:
    return round(HEIGHT - BOTTOM - min(max(gap, 0.0), WORST) / WORST * (HEIGHT - TOP - BOTTOM), 1)


def draw(found: Mapping[str, Sequence[Point]], steps: int) -> str:
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    parts.append(
        f'<text x="{LEFT}" y="22" font-size="15">Held-out loss above synchronous training, at equal tokens, '
        f"{steps:,} steps</text>"
    )
    for gap in (0.0, 0.05, 0.1, 0.15, 0.2):
        parts.append(f'<path d="M{LEFT} {y(gap)}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        label = f"{gap:.0%}" + "+" * (gap == WORST)
        parts.append(f'<text x="{LEFT - 8}" y="{y(gap) + 4}" text-anchor="end">{label}</text>')
    for fewer in (10, 25, 100, 400, 1000):
        parts.append(f'<path d="M{x(fewer)} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x(fewer)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">1/{fewer}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">bytes, of data parallelism\'s</text>')
    for number, (name, points) in enumerate(found.items()):
        colour, line = COLOURS[number % len(COLOURS)], sorted(points)
        path = "L".join(f"{x(fewer)} {y(gap)}" for fewer, gap in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for fewer, gap in line:
            title = f"<title>{escape(name)}: 1/{fewer:.0f} of the bytes, {gap:+.1%}</title>"
            parts.append(f'<circle cx="{x(fewer)}" cy="{y(gap)}" r="4" fill="{colour}">{title}</circle>')
        row = TOP + 18 + 22 * number
        parts.append(f'<circle cx="{WIDTH - RIGHT + 22}" cy="{row - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 34}" y="{row}">{escape(name)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return f'{head} font-size="12" fill="#222">{"".join(parts)}</svg>\n'


def main() -> None:
    PAGE.write_text(draw(curves(wan.Runs(wan.RUNS).read()), wan.SEARCH))


if __name__ == "__main__":
    main()

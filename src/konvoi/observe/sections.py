"""The report's sections, each a function from the account of a run to HTML, or to None where it has nothing to say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from konvoi.observe.account import Account
from konvoi.observe.charts import Chart, Mark, draw
from konvoi.observe.events import Event, Restarted, RunEnded, RunStarted, Sampled, Warned, WorkerDied
from konvoi.observe.wording import sentence
from konvoi.units import format_bytes, format_count, format_seconds

WIDE, NARROW = (920, 380), (380, 270)  # drawn twice, as text inside a drawing shrinks with it
SMALL = (300, 180)
MAX_INCIDENTS = 100
MAX_CELLS = 120  # of a row
MAX_SAMPLE_CHARS = 1500


@dataclass(frozen=True)
class Section:
    title: str
    body: str


def text(value: object) -> str:
    return escape(str(value), quote=True)


def headline(run: Account, unit: str) -> str:
    """The figures that a reader came for."""
    cells = []
    for name, value, note in _figures(run, unit):
        before, arrow, after = value.rpartition(" → ")
        earlier = f'<span class="before">{text(before)}{arrow}</span>' if before else ""
        cells.append(f"<div><dt>{text(name)}</dt><dd>{earlier}{text(after)}<small>{text(note)}</small></dd></div>")
    return f'<dl class="headline">{"".join(cells)}</dl>'


def _figures(run: Account, unit: str) -> list[tuple[str, str, str]]:
    """(name, value, note); a value that changed is "before → after"."""
    figures = []
    if (held_out := run.held_out()) is not None:
        name, found = held_out
        values = [f"{evaluated.values[name]:.3f}" for evaluated in (found[0], found[-1])][-len(found) :]
        note = f"{found[-1].split}, after {found[-1].step:,} steps"
        figures.append((f"held-out {name.replace('_', ' ')}", " → ".join(values), note))
    if run.steps:
        mean, count = run.final_loss
        figures.append(
            ("training loss", f"{mean:.3f}", f"mean of the last {count} steps" if count > 1 else "last step")
        )
        figures.append((f"{unit} per second", _short(run.rate), f"{_short(run.weight)} {unit} in all"))
    figures.append(("wall time", format_seconds(run.wall_s), "all launches together"))
    figures.append(("steps", f"{len(run.steps):,}", f"of {run.started.num_steps:,}" if run.started else ""))
    if run.num_parameters:
        figures.append(("parameters", format_count(run.num_parameters), f"{run.num_parameters:,}"))
    return figures


def lead(run: Account, unit: str) -> str:
    """The run in one sentence; empty where there is nothing to tell."""
    if not run.steps:
        return ""
    told = f"{len(run.steps):,} steps over {_short(run.weight)} {unit} in {format_seconds(run.wall_s)}"
    if (held_out := run.held_out()) is not None and len(held_out[1]) > 1:
        name, found = held_out
        first, last = found[0].values[name], found[-1].values[name]
        way = "fell" if last < first else "rose" if last > first else "went"
        told += f": held-out {name.replace('_', ' ')} {way} from {first:.2f} to {last:.2f}"
    return f'<p class="lead">{text(told)}.</p>'


def loss(run: Account) -> Section | None:
    if not run.steps:
        return None
    held_out = [evaluated for evaluated in run.evaluations if "loss" in evaluated.values]
    split = held_out[0].split if held_out else ""
    chart = Chart(
        name="training loss",
        points=[(step.step, step.loss) for step in run.steps],
        dots=[(evaluated.step, evaluated.values["loss"]) for evaluated in held_out if evaluated.split == split],
        dots_name=f"{split} loss",
        marks=_marks(run),
        log_from=5.0,
    )
    legend = '<span class="key of-line">training, smoothed</span><span class="key of-raw">each step</span>'
    legend += f'<span class="key of-dots">{text(split)}</span>' if held_out else ""
    legend += '<span class="key of-mark">interruption</span>' if chart.marks else ""
    return Section("Loss", f"<figure>{_both_widths(chart)}<figcaption>{legend}</figcaption></figure>")


def speed(run: Account, unit: str) -> Section | None:
    if not run.steps:
        return None
    rates = [(step.step, step.weight / max(step.seconds, 1e-9)) for step in run.steps]
    charts = [
        Chart(name=f"{unit} per second", points=rates, from_zero=True, marks=_marks(run)),
        Chart(name="gradient norm, before clipping", points=[(s.step, s.grad_norm) for s in run.steps], log_from=20.0),
        Chart(name="learning rate", points=[(s.step, s.lr) for s in run.steps], from_zero=True, is_smoothed=False),
    ]
    cells = "".join(f"<figure><h3>{text(chart.name)}</h3>{draw(chart, *SMALL)}</figure>" for chart in charts)
    return Section("Pace and gradients", f'<div class="multiples">{cells}</div>')


def agreements(run: Account) -> Section | None:
    """Whose work was counted in which: a row an island, from the first agreement to the last."""
    rounds = run.agreements
    names = sorted({name for one in rounds for name in one.counted})
    if not names:
        return None
    per_cell = -(-len(rounds) // MAX_CELLS)
    cells = [rounds[at : at + per_cell] for at in range(0, len(rounds), per_cell)]
    rows = ""
    for name in names:
        row = ""
        for cell in cells:
            number = sum(name in one.counted for one in cell)
            span = f"{cell[0].round:,}" + (f" to {cell[-1].round:,}" if len(cell) > 1 else "")
            told = f"{number} of {len(cell)}" if len(cell) > 1 else "counted" if number else "not counted"
            row += f'<i style="opacity:{number / len(cell):.2f}" title="agreement {span}: {told}"></i>'
        rows += f"<dt>{text(name)}</dt><dd>{row}</dd>"
    seconds = format_seconds(rounds[-1].time - rounds[0].time)
    note = f"{len(rounds):,} in {seconds}; filled where an island's work was counted"
    return Section("Agreements", f'<dl class="strips">{rows}</dl><p class="note">{note}</p>')


def time_spent(run: Account) -> Section | None:
    total = sum(seconds for _, seconds in run.spent)
    if not total:
        return None
    kinds = [(name, seconds, name.replace(" ", "-")) for name, seconds in run.spent]
    bar = "".join(
        f'<span class="{kind}" style="flex-grow:{seconds / total:.5f}" title="{name}: {_part(seconds, total)}"></span>'
        for name, seconds, kind in kinds
    )
    rows = "".join(
        f'<li><i class="{kind}"></i>{name}<b>{_part(seconds, total)}</b><span>{format_seconds(seconds)}</span></li>'
        for name, seconds, kind in kinds
    )
    return Section("Where the time went", f'<div class="bar">{bar}</div><ul class="parts">{rows}</ul>')


def samples(run: Account) -> Section | None:
    if not run.samples:
        return None
    last = run.samples[-1]
    first = run.samples[0] if run.samples[0].step < last.step else None
    blocks = (_sample(first) if first else "") + _sample(last)
    return Section("What it writes", f'<div class="samples">{blocks}</div>')


def incidents(run: Account) -> Section | None:
    if not run.incidents:
        return None
    rows = "".join(_incident(event, run.began) for event in run.incidents[:MAX_INCIDENTS])
    more = len(run.incidents) - MAX_INCIDENTS
    rows += f"<li>and {more:,} more, in events.jsonl</li>" if more > 0 else ""
    return Section("What happened", f'<ol class="timeline">{rows}</ol>')


def evaluations(run: Account) -> Section | None:
    if not run.evaluations:
        return None
    names = list(dict.fromkeys(name for evaluated in run.evaluations for name in evaluated.values))
    head = "".join(
        f"<th>{text(name)}</th>" for name in ("step", "split", *(n.replace("_", " ") for n in names), "took")
    )
    rows = []
    for evaluated in run.evaluations:
        cells = "".join(f"<td>{evaluated.values.get(name, math.nan):.4f}</td>" for name in names)
        best = " ★" if evaluated.best else ""
        took = format_seconds(evaluated.seconds)
        rows.append(f"<tr><td>{evaluated.step:,}{best}</td><td>{text(evaluated.split)}</td>{cells}<td>{took}</td></tr>")
    return Section("Evaluations", _folded(f"{len(rows)} evaluations", head, rows))


def clients(run: Account) -> Section | None:
    """How unlike they are."""
    if not run.spreads:
        return None
    named = ("step", "split", "figure", *next(iter(run.spreads[-1].spread.values()), {}), "clients")
    rows = []
    for found in run.spreads:
        for name, values in found.spread.items():
            cells = "".join(f"<td>{value:.4f}</td>" for value in values.values())
            where = f"<td>{found.step:,}</td><td>{text(found.split)}</td><td>{text(name.replace('_', ' '))}</td>"
            rows.append(f"<tr>{where}{cells}<td>{found.clients:,}</td></tr>")
    head = "".join(f"<th>{text(name)}</th>" for name in named)
    note = '<p class="note">each client\'s figure over its own held-out samples; all clients count alike</p>'
    return Section("Clients", _folded("how unlike they are", head, rows) + note)


def _folded(summary: str, head: str, rows: list[str]) -> str:
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<details><summary>{summary}</summary>{table}</details>"


def setting(job: Mapping[str, Any], plan: Mapping[str, Any], run: Account) -> Section | None:
    groups = [("Plan", _rows(plan) or "<p>One worker, every default.</p>"), ("Job", _rows(job))]
    if run.started is not None:
        derived = "".join(f"<li>{text(line)}</li>" for line in run.started.derived)
        groups.append(("Derived, each can be overridden", f'<ul class="derived">{derived}</ul>' if derived else ""))
        groups.append(("Machine", _rows({"fleet": run.started.fleet, **run.started.machine})))
    cells = "".join(f"<div><h3>{title}</h3>{body}</div>" for title, body in groups if body)
    return Section("How it was run", f'<div class="setting">{cells}</div>')


def _both_widths(chart: Chart) -> str:
    return f'<div class="wide">{draw(chart, *WIDE)}</div><div class="narrow">{draw(chart, *NARROW)}</div>'


def _marks(run: Account) -> list[Mark]:
    """Deaths and resumptions, where they have a place on the axis of steps."""
    marks = []
    for event in run.incidents:
        if isinstance(event, WorkerDied) and event.step is not None:
            marks.append(Mark(x=event.step, text=sentence(event), is_bad=True))
        if isinstance(event, RunStarted) and event.resumed_from:
            marks.append(Mark(x=event.resumed_from, text=sentence(event)))
    return marks


def _sample(sampled: Sampled) -> str:
    when = f"after {sampled.step:,} steps" if sampled.step else "before training"
    cut = sampled.text[:MAX_SAMPLE_CHARS] + (" …" if len(sampled.text) > MAX_SAMPLE_CHARS else "")
    return f"<figure><h3>{when}</h3><pre><b>{text(sampled.prompt)}</b>{text(cut)}</pre></figure>"


def _incident(event: Event, began: float) -> str:
    bad = isinstance(event, WorkerDied) or (isinstance(event, RunEnded) and event.reason == "failed")
    kind = "bad" if bad else "odd" if isinstance(event, (Warned, Restarted)) else ""
    when = format_seconds(max(event.time - began, 0.0))
    return f'<li class="{kind}"><time>+{when}</time><span>{text(sentence(event))}</span></li>'


def _rows(fields: Mapping[str, Any]) -> str:
    rows = [_measured(name, value) for name, value in fields.items()]
    cells = "".join(f"<dt>{text(name.replace('_', ' '))}</dt><dd>{text(value)}</dd>" for name, value in rows if value)
    return f"<dl>{cells}</dl>" if cells else ""


def _measured(name: str, value: object) -> tuple[str, str]:
    """Quantities print in their unit: names end in it."""
    if isinstance(value, (int, float)) and name.endswith("_bytes"):
        return name.removesuffix("_bytes"), format_bytes(value)
    if isinstance(value, (int, float)) and name.endswith("_s"):
        return name.removesuffix("_s"), format_seconds(value)
    return name, _value(value)


def _value(value: object) -> str:
    """Nested descriptions on one line; what is unset is left out."""
    if isinstance(value, Mapping):
        return " · ".join(f"{name} {_value(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return "" if value is None else f"{value:,}" if type(value) is int and abs(value) >= 10_000 else str(value)


def _short(count: float) -> str:
    return f"{count:.1f}" if count < 100 else format_count(count)


def _part(seconds: float, total: float) -> str:
    percent = 100 * seconds / total
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"
